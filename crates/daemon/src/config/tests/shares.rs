//! Shared folders.

use super::{accepted, group, refused};
use crate::config::ShareConfig;

#[test]
fn shares_are_read() {
    for nothing in ["share_home: ''", "share_home:", "shares: []"] {
        let (config, warnings) = accepted(&group(&[nothing]));
        assert!(config.host_groups[0].shares.is_empty(), "{nothing}");
        assert_eq!(warnings, [""; 0]);
    }
    let (config, warnings) = accepted(&group(&[
        "share_home: ~/code",
        "shares:",
        "  - {path: data, mount: /srv/data/, read_only: true}",
        "  - {path: ~/x, mount: ~/x}",
    ]));
    assert_eq!(warnings, [""; 0]);
    let share = |tag: &str, path: &str, mount: &str, read_only, home| ShareConfig {
        tag: tag.into(),
        path: path.into(),
        mount: mount.into(),
        read_only,
        home,
    };
    assert_eq!(
        config.host_groups[0].shares,
        [
            share("home", "/home/me/code", "~/home", false, true),
            share("share1", "data", "/srv/data", true, false),
            share("share2", "/home/me/x", "~/x", false, false),
        ]
    );
}

#[test]
fn shares_that_make_no_sense_are_refused() {
    for (share, want) in [
        ("{mount: /x}", "a share needs path, found nothing"),
        ("{path: x}", "a share needs mount, found nothing"),
        ("{path: '', mount: /x}", "expected a path, found text"),
        ("{path: x, mount: x}", "expected a path below / or ~/"),
        ("{path: x, mount: /}", "expected a path below / or ~/"),
        ("{path: x, mount: /a/../b}", "without . and .."),
        (
            "{path: x, mount: ~/home/}",
            "something else is mounted at ~/home",
        ),
        (
            "{path: x, mount: /x, read_only: maybe}",
            "expected true or false",
        ),
        ("x", "expected a table"),
    ] {
        let list = format!("  - {share}");
        let errors = refused(&group(&["share_home: ~/", "shares:", &list]));
        assert!(
            errors.len() == 1 && errors[0].contains(want),
            "{share}: {errors:?}"
        );
        assert!(errors[0].contains("shares[0]"), "{errors:?}");
    }
    let many = "  - {path: x, mount: /x}\n      ".repeat(17);
    let errors = refused(&group(&["shares:", &many]));
    assert!(errors[0].contains("more than the 16"), "{errors:?}");
}
