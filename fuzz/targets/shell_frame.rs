//! Messages of a shell.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::{MAX_SHELL_DATA, ShellFrame, whole_characters};

fuzz_target!(|message: &[u8]| {
    if let Some(frame) = ShellFrame::decode(message) {
        if let ShellFrame::Data(data) = frame {
            assert!(data.len() < message.len());
            if data.len() > MAX_SHELL_DATA {
                return;
            }
        }
        let again = frame.encode();
        assert_eq!(ShellFrame::decode(&again), Some(frame));
    }
    let whole = whole_characters(message);
    assert!(whole <= message.len() && message.len() - whole < 4);
});
