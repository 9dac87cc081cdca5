//! The rules for tags: what one may be, how they change, and the friendly name among them.

use slicer_api::{ApiError, TagsChange};

/// Longest tag, and most tags of a VM.
const MAX_TAG: usize = 256;
const MAX_TAGS: usize = 64;
/// What the tag that is a friendly name begins with.
pub(crate) const NAME: &str = "name=";

/// Tags are free-form lines, of bounded length and number.
pub(crate) fn check_lines(tags: &[String]) -> Result<(), ApiError> {
    let bad = |text: String| Err(ApiError::bad_request(text));
    if tags.len() > MAX_TAGS {
        return bad(format!("more than {MAX_TAGS} tags"));
    }
    let wrong = tags
        .iter()
        .find(|t| t.is_empty() || t.len() > MAX_TAG || t.chars().any(char::is_control));
    wrong.map_or(Ok(()), |tag| {
        let tag: String = tag.chars().take(64).collect();
        bad(format!(
            "invalid tag {tag:?}: expected 1 to {MAX_TAG} printable characters"
        ))
    })
}

/// Among a VM's tags, `name=` holds a friendly name, a DNS label that can't be mistaken for a
/// hostname.
pub(crate) fn check(tags: &[String]) -> Result<(), ApiError> {
    check_lines(tags)?;
    let bad = |text: String| Err(ApiError::bad_request(text));
    let names: Vec<&str> = tags.iter().filter_map(|t| t.strip_prefix(NAME)).collect();
    let [name] = names[..] else {
        return if names.is_empty() {
            Ok(())
        } else {
            bad("more than one name= tag".into())
        };
    };
    let label = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    let generated = name
        .rsplit_once('-')
        .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if !label || generated {
        return bad(format!(
            "invalid name {name:?}: use lowercase letters, digits and dashes, at most 63, and not \
             the form GROUP-NUMBER"
        ));
    }
    Ok(())
}

/// The tags after a change. A VM's name is given at its creation and stays; `may_name` says that
/// this one, which nobody creates by request, may still be given one.
pub(crate) fn apply(
    change: &TagsChange,
    current: &[String],
    may_name: bool,
) -> Result<Vec<String>, ApiError> {
    let is_name = |t: &&String| t.starts_with(NAME);
    let bad = |text: &str| Err(ApiError::bad_request(text));
    let mut tags = current.to_vec();
    let named = current.iter().find(is_name);
    let fixed = [&change.replace, &change.remove];
    if fixed.into_iter().flatten().flatten().any(|t| is_name(&t)) {
        return bad("a name= tag can't be replaced or removed: a VM keeps its name");
    }
    match change {
        TagsChange {
            replace: Some(replace),
            add: None,
            remove: None,
        } => {
            tags = named.into_iter().chain(replace).cloned().collect();
        }
        TagsChange {
            replace: Some(_), ..
        } => return bad("replace can't be combined with add or remove"),
        TagsChange {
            add: None,
            remove: None,
            ..
        } => return bad("nothing to change: give add, remove or replace"),
        TagsChange { add, remove, .. } => {
            let add = add.as_deref().unwrap_or_default();
            let new_name = add.iter().find(is_name).filter(|t| !current.contains(t));
            if new_name.is_some() && (named.is_some() || !may_name) {
                return bad("a name= tag can't be added: a VM is named when it is launched");
            }
            let remove = remove.as_deref().unwrap_or_default();
            tags.retain(|t| !remove.contains(t));
            tags.extend(add.iter().cloned());
        }
    }
    let mut seen = std::collections::HashSet::new();
    tags.retain(|t| seen.insert(t.clone()));
    check(&tags)?;
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_that_no_hostname_is() {
        for name in ["a", "builder", "my-vm", "x1", "a-b1"] {
            check(&[format!("name={name}"), "k=v".into()]).unwrap();
        }
        for name in ["", "A", "-a", "a-", "sbox-1", "a.b", "ä", &"x".repeat(64)] {
            assert!(check(&[format!("name={name}")]).is_err(), "{name}");
        }
        assert!(check(&["name=a".into(), "name=b".into()]).is_err());
        assert!(check(&["a\nb".into()]).is_err());
        assert!(check(&vec!["x".to_owned(); 65]).is_err());
    }

    fn change(json: &str) -> TagsChange {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn changes() {
        let now = ["name=web".to_owned(), "a=1".to_owned(), "b".to_owned()];
        for (json, after) in [
            (r#"{"add":["c","a=1"]}"#, "name=web a=1 b c"),
            (r#"{"add":["c"],"remove":["a=1","x"]}"#, "name=web b c"),
            (r#"{"replace":["z"]}"#, "name=web z"),
            (r#"{"replace":[]}"#, "name=web"),
            (r#"{"add":["name=web"]}"#, "name=web a=1 b"),
        ] {
            let tags = apply(&change(json), &now, true).unwrap();
            assert_eq!(tags.join(" "), after, "{json}");
        }
        for json in [
            "{}",
            r#"{"replace":[],"add":["x"]}"#,
            r#"{"remove":["name=web"]}"#,
            r#"{"replace":["name=web"]}"#,
            r#"{"add":["name=other"]}"#,
            r#"{"add":["a\nb"]}"#,
        ] {
            apply(&change(json), &now, true).unwrap_err();
        }
        let name = change(r#"{"add":["name=web"]}"#);
        assert_eq!(apply(&name, &[], true).unwrap(), ["name=web"]);
        apply(&name, &[], false).unwrap_err();
    }
}
