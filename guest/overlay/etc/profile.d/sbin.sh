# /etc/profile leaves these out for everybody but root; users here are their own administrators.
case ":$PATH:" in
*:/usr/local/sbin:*) ;;
*) PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" ;;
esac
