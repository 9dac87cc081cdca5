//! Patterns of watches and of what a copy leaves out. They must not take for ever.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::{Excludes, Glob};

fuzz_target!(|data: (&str, &[u8])| {
    let (pattern, path) = data;
    if let Ok(glob) = Glob::new(pattern) {
        assert_eq!(glob.as_str(), pattern);
        let _ = glob.matches(path);
        let _ = glob.matches_name(path);
    }
    if let Ok(excludes) = Excludes::new([pattern, "*.log"])
        && excludes.excludes(path)
    {
        // What is in something that is left out is left out.
        let below = [path, b"/below"].concat();
        assert!(excludes.excludes(&below), "{pattern:?} {path:?}");
    }
});
