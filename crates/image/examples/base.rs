//! Builds a base image: `base REFERENCE ARCH OUT`. What is in an archive goes by way of `OUT.cache`.

use slicer_image::{ImageCache, ImageRef, Limits, Progress, Resolved, build_base};
use std::error::Error;
use std::io::{Write, stderr};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [reference, arch, out] = args.as_slice() else {
        return Err("usage: base REFERENCE ARCH OUT".into());
    };
    let started = Instant::now();
    let image = match ImageRef::parse(reference)? {
        layout @ ImageRef::OciLayout { .. } => Resolved::find(&layout, arch)?,
        archive => {
            let cache = ImageCache::open(Path::new(&format!("{out}.cache")))?;
            cache.import(&archive, arch)?
        }
    };
    writeln!(stderr(), "{:.1?} resolved", started.elapsed())?;
    let size = build_base(
        &image,
        Path::new(out),
        0,
        &Limits::default(),
        &|progress| match progress {
            Progress::Data { done, of } if done < of => {}
            progress => drop(writeln!(stderr(), "{:.1?} {progress:?}", started.elapsed())),
        },
    )?;
    writeln!(stderr(), "{:.1?} {out}: {size} bytes", started.elapsed())?;
    Ok(())
}
