use super::*;
use crate::config::HostOs;
use crate::service::job::tests::{nasty, plain};
use crate::service::script::Script;

const SHOW: &str = "systemctl --user show --property=ActiveState,SubState,MainPID,ExecMainCode,\
                    ExecMainStatus,WorkingDirectory slicer-daemon.service";

fn systemd() -> (Systemd<Script>, Script) {
    let script = Script::new();
    let config = Path::new("/home/alex/.config");
    let systemd = Systemd::new("alex".to_owned(), config, None, script.clone());
    (systemd, script)
}

#[test]
fn units_are_these() {
    for (service, golden) in [
        (
            Service::Daemon,
            include_str!("../golden/slicer-daemon.service"),
        ),
        (Service::Tray, include_str!("../golden/slicer-tray.service")),
    ] {
        assert_eq!(unit(&plain(service, HostOs::Linux)), golden);
    }
    let nasty = unit(&nasty(Service::Daemon));
    assert_eq!(nasty, include_str!("../golden/nasty.service"));
}

#[test]
fn words_are_escaped() {
    for (word, quoted_) in [
        ("/plain", r#""/plain""#),
        ("a b", r#""a b""#),
        ("50%", r#""50%%""#),
        (r#"\ and ""#, r#""\\ and \"""#),
        ("$HOME ${x}", r#""$HOME ${x}""#),
        ("", r#""""#),
    ] {
        assert_eq!(quoted(word), quoted_);
    }
    for (path, wanted) in [
        ("/a b/\"c\"", "/a b/\"c\""),
        ("/50%", "/50%%"),
        (r"/a\b", r"/a\b"),
        (r"/a\", r"/a\/"),
        ("/a ", "/a /"),
    ] {
        assert_eq!(plain_path(path), wanted);
    }
    assert_eq!(exec("/a $b/c"), r#"":/a $b/c""#);
    assert_eq!(
        exec("/o'brien/x"),
        r#":/bin/sh -c "exec \"$0\" \"$@\"" "/o'brien/x""#
    );
}

#[tokio::test]
async fn it_is_told_where_the_manager_is() {
    let config = Path::new("/home/alex/.config");
    let dir = Some("/run/user/1000".to_owned());
    let systemd = Systemd::new("alex".to_owned(), config, dir, Script::new());
    let call = systemd.logs(Service::Daemon, 1, true).unwrap();
    let wanted = [("XDG_RUNTIME_DIR", "/run/user/1000".to_owned())];
    assert_eq!(call.environment, wanted);
    assert_eq!(
        call.line(),
        "journalctl --no-pager --quiet --user-unit=slicer-daemon.service --lines=1 --follow"
    );
}

#[tokio::test]
async fn without_a_manager_one_is_told_how_to_get_it() {
    let (systemd, script) = systemd();
    let ask = "systemctl --user show --property=Version";
    script.answer(ask, 1, "Failed to connect to bus: No medium found");
    let e = systemd.check().await.unwrap_err().to_string();
    assert!(
        e.contains("loginctl enable-linger alex") && e.contains("No medium"),
        "{e}"
    );
    let said = "System has not been booted with systemd as init system (PID 1). Can't operate.";
    script.answer(ask, 1, said);
    let e = systemd.check().await.unwrap_err();
    assert!(matches!(e, ServiceError::NoSystemd), "{e}");
}

fn shown(text: &str) -> Status {
    parse_show(text, Service::Daemon, PathBuf::from("/nonexistent"))
}

#[test]
fn a_service_is_as_systemd_says() {
    let status = shown(
        "ActiveState=active\nSubState=running\nMainPID=12\nExecMainCode=0\nExecMainStatus=0\n\
         WorkingDirectory=/home/alex/a=b c\n",
    );
    assert!(status.running && !status.starting);
    assert_eq!((status.pid, status.last_exit), (Some(12), None));
    assert_eq!(status.directory, Some(PathBuf::from("/home/alex/a=b c")));

    let status = shown(
        "ActiveState=activating\nSubState=auto-restart\nMainPID=0\nExecMainCode=1\n\
         ExecMainStatus=1\nWorkingDirectory=/d\n",
    );
    assert!(!status.running && !status.starting);
    assert_eq!(status.last_exit.as_deref(), Some("exit code 1"));

    let status = shown("ActiveState=activating\nSubState=start\nMainPID=12\nExecMainCode=0\n");
    assert!(!status.running && status.starting);
    let status = shown("ActiveState=failed\nSubState=failed\nExecMainCode=2\nExecMainStatus=9\n");
    assert_eq!(status.last_exit.as_deref(), Some("signal 9"));
    let status = shown("ActiveState=inactive\nSubState=dead\nMainPID=0\nWorkingDirectory=\n");
    assert!(!status.running && status.directory.is_none());
    assert_eq!(shown("nonsense").state, "unknown");
}

#[tokio::test]
async fn calls_come_in_this_order() {
    let (systemd, script) = systemd();
    let daemon = Service::Daemon;
    script.succeed(&[
        "systemctl --user daemon-reload",
        "systemctl --user --quiet enable slicer-daemon.service",
        "systemctl --user --quiet reset-failed slicer-daemon.service",
        "systemctl --user start slicer-daemon.service",
        "systemctl --user stop slicer-daemon.service",
        "systemctl --user --quiet disable slicer-daemon.service",
        "systemctl --user daemon-reload",
        "systemctl --user --quiet reset-failed slicer-daemon.service",
    ]);
    systemd.enable(daemon).await.unwrap();
    systemd.start(daemon).await.unwrap();
    systemd.stop(daemon).await.unwrap();
    systemd.disable(daemon).await.unwrap();
    systemd.forget(daemon).await.unwrap();
    script.is_over();

    // One that systemd can't read is not loaded, and doesn't run.
    script.answer("systemctl --user stop slicer-daemon.service", 5, "");
    systemd.stop(daemon).await.unwrap();
    script.answer(SHOW, 1, "Connection refused");
    let e = systemd.status(daemon).await.unwrap_err().to_string();
    assert!(e.ends_with("failed: Connection refused"), "{e}");
}

#[tokio::test]
async fn the_tray_needs_a_desktop() {
    let (systemd, script) = systemd();
    assert!(systemd.can_run(Service::Daemon).await.unwrap());
    let ask = "systemctl --user --quiet is-active graphical-session.target";
    script.answer(ask, 3, "").answer(ask, 0, "");
    assert!(!systemd.can_run(Service::Tray).await.unwrap());
    assert!(systemd.can_run(Service::Tray).await.unwrap());
}

#[tokio::test]
async fn who_does_not_linger_is_told() {
    let (systemd, script) = systemd();
    let ask = "loginctl show-user alex --property=Linger --value";
    script.answer(ask, 0, "no\n").answer(ask, 0, "yes\n");
    script.answer(ask, 1, "");
    let advice = systemd.advice().await.unwrap();
    assert!(advice.contains("enable-linger alex"), "{advice}");
    assert_eq!(systemd.advice().await, None);
    assert_eq!(systemd.advice().await, None);
}
