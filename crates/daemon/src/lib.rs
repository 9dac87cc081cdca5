//! The daemon of slicer.

pub mod config;
