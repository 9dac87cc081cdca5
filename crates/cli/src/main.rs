//! The slicer command.
fn main() {}
