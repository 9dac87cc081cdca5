//! A tar archive as it comes in: entries and their data out of any sequence of pieces.
//!
//! Fields are read by the `tar` crate. Its own reader is not used: it takes names of any length
//! into memory, and it can only wait for bytes, not be given them.

use crate::error::TreeError;
use crate::header::{self, BLOCK, Block, Entry, Extensions, Kind};

/// Bytes a long name or the records on an entry may have.
const MAX_EXTENSION: u64 = 64 << 10;

/// What was found in the bytes.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// An entry begins.
    Entry(Entry),
    /// More of the file that began last.
    Data(&'a [u8]),
    /// The file that began last is complete.
    FileEnd,
}

#[derive(Debug, Clone, Copy)]
enum Extension {
    LongName,
    Records,
}

#[derive(Debug)]
enum State {
    /// Within a header.
    Header,
    /// Within what follows the header of an extension.
    Extension {
        kind: Extension,
        left: usize,
        bytes: Vec<u8>,
        padding: u64,
    },
    /// Within a file.
    File { left: u64, padding: u64 },
    /// Within what means nothing.
    Skip(u64),
    /// Behind the end; what follows is padding.
    End,
}

/// Finds what is in an archive.
#[derive(Debug)]
pub(crate) struct Archive {
    state: State,
    header: [u8; BLOCK],
    have: usize,
    extensions: Extensions,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Header,
            header: [0; BLOCK],
            have: 0,
            extensions: Extensions::default(),
        }
    }

    /// The next event, for which `input` is consumed as far as needed; `None` when all of it was.
    pub(crate) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a>>, TreeError> {
        loop {
            match &mut self.state {
                State::Header => {
                    let piece = take(input, BLOCK - self.have);
                    self.header[self.have..self.have + piece.len()].copy_from_slice(piece);
                    self.have += piece.len();
                    if self.have < BLOCK {
                        return Ok(None);
                    }
                    self.have = 0;
                    if let Some(entry) = self.take_header()? {
                        return Ok(Some(Event::Entry(entry)));
                    }
                }
                State::Extension {
                    kind,
                    left,
                    bytes,
                    padding,
                } => {
                    let piece = take(input, *left);
                    bytes.extend_from_slice(piece);
                    *left -= piece.len();
                    if *left > 0 {
                        return Ok(None);
                    }
                    let bytes = std::mem::take(bytes);
                    match kind {
                        Extension::LongName => self.extensions.long_name(bytes),
                        Extension::Records => self.extensions.records(&bytes)?,
                    }
                    self.state = State::Skip(*padding);
                }
                State::File { left: 0, padding } => {
                    self.state = State::Skip(*padding);
                    return Ok(Some(Event::FileEnd));
                }
                State::File { left, .. } => {
                    let piece = take(input, usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= piece.len() as u64;
                    return Ok((!piece.is_empty()).then_some(Event::Data(piece)));
                }
                State::Skip(0) => self.state = State::Header,
                State::Skip(left) => {
                    let piece = take(input, usize::try_from(*left).unwrap_or(usize::MAX));
                    if piece.is_empty() {
                        return Ok(None);
                    }
                    *left -= piece.len() as u64;
                }
                State::End => {
                    *input = &[];
                    return Ok(None);
                }
            }
        }
    }

    /// Whether an archive may end here: behind its end, or, as some writers leave it, behind an
    /// entry.
    pub(crate) fn may_end(&self) -> bool {
        match self.state {
            State::End | State::Skip(0) => true,
            State::Header => self.have == 0 && self.extensions == Extensions::default(),
            _ => false,
        }
    }

    fn take_header(&mut self) -> Result<Option<Entry>, TreeError> {
        let extension = |kind, size| {
            if size > MAX_EXTENSION {
                return Err(TreeError::Archive("a name or a header is too long"));
            }
            let left = usize::try_from(size).unwrap_or(usize::MAX);
            Ok(State::Extension {
                kind,
                left,
                bytes: Vec::with_capacity(left),
                padding: padding(size),
            })
        };
        self.state = match header::block(&self.header)? {
            Block::End => State::End,
            Block::LongName(size) => extension(Extension::LongName, size)?,
            Block::Records(size) => extension(Extension::Records, size)?,
            Block::Ignored(size) => skip(size)?,
            Block::Entry(header) => {
                let entry = std::mem::take(&mut self.extensions).entry(&header)?;
                self.state = match entry.kind {
                    Kind::File(size) => State::File {
                        left: size,
                        padding: padding(size),
                    },
                    Kind::Directory => State::Header,
                    Kind::Other(size) => skip(size)?,
                };
                return Ok(Some(entry));
            }
        };
        Ok(None)
    }
}

fn skip(size: u64) -> Result<State, TreeError> {
    let whole = size.checked_add(padding(size));
    whole
        .map(State::Skip)
        .ok_or(TreeError::Archive("an entry's size makes no sense"))
}

/// What fills the last block of `size` bytes.
pub(crate) fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// Takes up to `most` bytes off the front.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (piece, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    piece
}
