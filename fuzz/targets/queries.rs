//! The queries of all endpoints. What was read is read again the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::{
    CopyIn, CopyOut, ExecRequest, FsQuery, KillSignal, LogsRequest, ShellRequest, WatchRequest,
    wait_exit_limit,
};

macro_rules! again {
    ($query:ident: $($type:ident),*) => {$(
        if let Ok(read) = $type::from_query($query) {
            let shown = read.to_query();
            assert_eq!($type::from_query(&shown).as_ref(), Ok(&read), "{shown:?}");
        }
    )*};
}

fuzz_target!(|query: &str| {
    again!(query: ExecRequest, FsQuery, LogsRequest, ShellRequest);
    if let Ok(read) = WatchRequest::from_query(query) {
        assert!(
            WatchRequest::from_query(&read.to_query()).is_ok(),
            "{query:?}"
        );
    }
    for kind in [None, Some("application/x-tar")] {
        if let Ok(read) = CopyIn::from_query(query, kind) {
            assert_eq!(
                CopyIn::from_query(&read.to_query(), kind).as_ref(),
                Ok(&read)
            );
        }
        if let Ok(read) = CopyOut::from_query(query, kind) {
            assert_eq!(
                CopyOut::from_query(&read.to_query(), kind).as_ref(),
                Ok(&read)
            );
        }
    }
    let _ = wait_exit_limit(query);
    let _ = KillSignal::parse(query);
});
