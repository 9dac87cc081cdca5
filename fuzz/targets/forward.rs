//! Mappings of `-L`, and what is dialled in a guest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::{Endpoint, Forward, ForwardTarget};
use std::path::Path;

fuzz_target!(|text: &str| {
    if let Ok(target) = text.parse::<ForwardTarget>() {
        let again = target.to_string().parse::<ForwardTarget>();
        assert_eq!(again.as_ref(), Ok(&target), "{text:?}");
    }
    if let Ok(forward) = text.parse::<Forward>() {
        let target = forward.target.to_string();
        assert_eq!(
            target.parse::<ForwardTarget>().as_ref(),
            Ok(&forward.target),
            "{text:?}"
        );
    }
    let _ = Endpoint::parse(text, Some(Path::new("/home/me")));
});
