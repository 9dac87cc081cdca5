//! Prepares boot files: `kernel oci:PATH[:TAG] ARCH AGENT OUT_DIR`.

use slicer_image::{ImageRef, Resolved, prepare_kernel};
use std::error::Error;
use std::io::{Write, stderr};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [reference, arch, agent, out] = args.as_slice() else {
        return Err("usage: kernel oci:PATH[:TAG] ARCH AGENT OUT_DIR".into());
    };
    let started = Instant::now();
    let image = Resolved::find(&ImageRef::parse(reference)?, arch)?;
    let files = prepare_kernel(&image, &std::fs::read(agent)?, Path::new(out))?;
    writeln!(stderr(), "{:.1?} {files:#?}", started.elapsed())?;
    Ok(())
}
