//! The user guide's reference.

use super::accepted;
use crate::config::unserved;

const REFERENCE: &str = include_str!("../../../../../docs/guide/configuration.md");

#[test]
fn its_example_is_accepted_without_a_word() {
    let example = REFERENCE.split("```yaml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    assert_eq!(accepted(example).1, [""; 0]);
}

#[test]
fn it_says_what_is_not_served() {
    let (served, unserved) = REFERENCE.split_once("## Not served yet").unwrap();
    for (key, instead) in unserved::rows() {
        assert!(unserved.contains(key), "{key} is not told to be unserved");
        let plain = unserved.replace(['`', '*'], "").to_lowercase();
        assert!(
            plain.contains(&instead.replace('`', "").to_lowercase()),
            "{key}: {instead}"
        );
    }
    for key in [
        "host_groups",
        "kernel_image",
        "graceful_shutdown",
        "storage_size",
        "gateway",
    ] {
        assert!(served.contains(&format!("`{key}`")), "{key}");
    }
}
