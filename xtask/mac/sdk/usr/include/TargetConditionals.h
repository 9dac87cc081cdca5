/* What C asks of it, clang defines by itself. */
