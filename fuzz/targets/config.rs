//! The daemon's configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_daemon::config::{Config, Host};

fuzz_target!(|text: &str| {
    if let Err(e) = Config::parse(text, "fuzz.yaml", &Host::current()) {
        assert!(!e.to_string().is_empty());
    }
});
