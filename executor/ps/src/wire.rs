//! Frames: a fixed little-endian header of 64 bytes, a few bytes of meta, then `f32` straight from and to memory.
//!
//! | bytes | field | meaning (where not said, 0) |
//! |---|---|---|
//! | 0..4 | magic | `TFPS` |
//! | 4 | kind | [`Kind`] |
//! | 5 | flags | [`DROPPED`], [`STOP`], [`BUFFERS`], [`INITIALISED`], [`WINDOW`], [`BF16`], [`SPARSE`], [`SLICED`], [`SLOTS`]; of a decision its tag |
//! | 8..12 | worker | number of parts in a decision about an update |
//! | 12..16 | meta | length of meta in bytes |
//! | 16..24 | seq | of the push; the session in Welcome; the index of a decision; the round in Measured |
//! | 24..32 | step | global step (base step in a push) |
//! | 32..40 | rows | rows of the push; seq, id or round in a decision, 1 in one to apply without an answer; shard in Staged; optimizer step in answers of local SGD; with [`WINDOW`], where in the state's file the parameters begin, bytes |
//! | 40..48 | loss | f64; optimizer step (u64) in Init |
//! | 48..56 | body | number of f32: gradient, parameters, or parameters and slots (in local SGD always); of what is to be loaded only the fresh ones |
//! | 56..64 | aux | number of f32 after the body: buffers |
//!
//! A ps reads a push completely before it answers, and waits for nothing while it reads; a worker reads an answer
//! completely before it sends again. So full socket buffers can only delay, not lock.

use std::io::{self, IoSlice, IoSliceMut};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cast;
use crate::error::{Error, Refusal, Violation};
use crate::sequencer::Place;
use crate::transport::Connection;

/// Grows with every change of the frames; both sides must speak the same.
pub const VERSION: u32 = 6;
/// Flag of a Result: the push was not applied.
pub const DROPPED: u8 = 1;
/// Flag of an answer of ps:0: no push will be applied any more.
pub const STOP: u8 = 2;
/// Flag of a push: buffers follow the gradient.
pub const BUFFERS: u8 = 4;
/// Flag of a push: the gradient is rounded to bf16, two elements in each f32 of the body, the first one below.
pub const BF16: u8 = 32;
/// Flag of a push: the body is the u32 indices of some elements, ascending, then their values; all others are 0.
pub const SPARSE: u8 = 64;
/// Flag of a push: the gradient has come in slices, and the body is empty.
pub const SLICED: u8 = 128;
/// Flag of ps:0's Welcome: the chief has initialised, at global step `step`.
pub const INITIALISED: u8 = 8;
/// Flag of a push: the gradient lies in the stage and the blocks of the window, and the body is empty. Of its Result: the
/// parameters lie in the state, and the body is empty. Of the answer to Window: there is one.
pub const WINDOW: u8 = 8;
/// Flag of a Pull: the slots are asked for, not the parameters.
pub const SLOTS: u8 = 16;

const MAGIC: [u8; 4] = *b"TFPS";
const HEADER: usize = 64;
/// Slices per system call.
const BATCH: usize = 32;
/// Longest meta of a Hello: read before the peer has shown the token.
pub const MAX_HELLO: usize = 1 << 14;
/// Longest meta of any other frame (leases, layouts).
pub const MAX_META: usize = 1 << 28;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame on a connection; meta is a [`Hello`].
    Hello = 1,
    Welcome,
    /// Meta is a `Refusal`.
    Refused,
    /// Chief to ps; meta is an [`Init`]. Answered by Ok when the ps has its part, which nobody sees yet.
    Init,
    /// Answer without parameters.
    Ok,
    /// Meta is a `Fingerprint`; answered by State when the chief has initialised.
    WaitInit,
    /// Parameters, and buffers from ps:0.
    State,
    PushPull,
    /// Answer to PushPull.
    Result,
    /// Answered by State.
    Pull,
    Idle,
    Active,
    Finish,
    /// ps:k to ps:0: a gradient has fully arrived here.
    Staged,
    /// ps:0 to ps:k.
    Decision,
    /// ps:k to ps:0: a worker's connection to this shard broke.
    WorkerGone,
    /// Between ps: this one is being stopped, the end of the connection is no failure.
    Bye,
    /// ps:k to ps:0: this shard's sums of a round of measuring, as meta.
    Measured,
    /// Before Hello: asks for the name of the abstract socket; the answer has it as meta, empty if there is none.
    Nearest,
    /// Chief to ps, after Init: every ps has its part, so it may be used.
    Begin,
    /// Deterministic training: a gradient, answered by Ok as soon as it is here. To ps:0 its place comes before the leases.
    Push,
    /// Asks for the parameters of global step `step`, from which on they stay until the asker has pushed: answered by
    /// State, or by Ok if they are not there soon.
    Await,
    /// Part of the gradient of a push that is still to come; `rows` is where it begins in the shard. Not answered.
    Slice,
    /// Asks for a stage of `body` elements in the connection's window, and for blocks of `rows` elements in all. Answered by
    /// Ok, whose flag says whether they are there, and whose `rows` where the blocks begin in the stage's file, bytes.
    Window,
    /// What the last Result named has been read. Not answered; the next push says so too.
    Taken,
    /// What of the gradients from the next push on lies in blocks: for each piece three u64, where it begins in the shard, its
    /// length, and where it begins in the blocks, elements. Not answered.
    Blocks,
}

const KINDS: [Kind; 26] = [
    Kind::Hello,
    Kind::Welcome,
    Kind::Refused,
    Kind::Init,
    Kind::Ok,
    Kind::WaitInit,
    Kind::State,
    Kind::PushPull,
    Kind::Result,
    Kind::Pull,
    Kind::Idle,
    Kind::Active,
    Kind::Finish,
    Kind::Staged,
    Kind::Decision,
    Kind::WorkerGone,
    Kind::Bye,
    Kind::Measured,
    Kind::Nearest,
    Kind::Begin,
    Kind::Push,
    Kind::Await,
    Kind::Slice,
    Kind::Window,
    Kind::Taken,
    Kind::Blocks,
];

/// The fixed part of a frame; see the module for the meaning of the fields.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    pub kind: Kind,
    pub flags: u8,
    pub worker: u32,
    pub seq: u64,
    pub step: u64,
    pub rows: u64,
    pub loss: f64,
    /// Bytes of meta; set by [`send`].
    pub meta: u32,
    /// Elements.
    pub body: u64,
    /// Elements.
    pub aux: u64,
}

impl Header {
    /// All other fields 0.
    pub fn new(kind: Kind) -> Header {
        Header { kind, flags: 0, worker: 0, seq: 0, step: 0, rows: 0, loss: 0.0, meta: 0, body: 0, aux: 0 }
    }

    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes[8..12].copy_from_slice(&self.worker.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.meta.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.step.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.rows.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.loss.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.body.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.aux.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Header, Violation> {
        fn part<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        if bytes[0..4] != MAGIC {
            return Err(Violation::Magic);
        }
        let kind = KINDS.into_iter().find(|&kind| kind as u8 == bytes[4]).ok_or(Violation::UnknownKind(bytes[4]))?;
        Ok(Header {
            kind,
            flags: bytes[5],
            worker: u32::from_le_bytes(part(bytes, 8)),
            meta: u32::from_le_bytes(part(bytes, 12)),
            seq: u64::from_le_bytes(part(bytes, 16)),
            step: u64::from_le_bytes(part(bytes, 24)),
            rows: u64::from_le_bytes(part(bytes, 32)),
            loss: f64::from_le_bytes(part(bytes, 40)),
            body: u64::from_le_bytes(part(bytes, 48)),
            aux: u64::from_le_bytes(part(bytes, 56)),
        })
    }
}

/// Who connects, to whom it believes to connect, and that it may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub token: String,
    pub generation: u64,
    /// The ps that the sender wants, and how many there are.
    pub shard: usize,
    pub num_shards: usize,
    pub role: HelloRole,
}

/// The sender's role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum HelloRole {
    /// `session` is what ps:0 gave out, and absent in the Hello to ps:0 itself.
    Worker {
        worker: u32,
        is_chief: bool,
        session: Option<u32>,
    },
    Shard {
        shard: usize,
    },
}

/// The meta of an Init; the body is the parameters, then each slot, of the shard's range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Init {
    pub layout: crate::Layout,
    pub optimizer: crate::Scheduled,
    pub mode: crate::Mode,
    pub optimizer_step: u64,
    /// Names of the slots in the body; empty for fresh ones.
    pub slots: Vec<String>,
    /// The ps reads its part by itself, and the body has only what is fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<crate::Load>,
}

/// Sends one frame; `header.meta` is set to the length of `meta`, the caller has set `body` and `aux`.
pub fn send<'a>(
    connection: &mut dyn Connection,
    mut header: Header,
    meta: &[u8],
    floats: impl IntoIterator<Item = &'a [f32]>,
) -> Result<(), Error> {
    let too_long = |_| {
        let violation = Violation::Length { what: "meta", allowed: MAX_META as u64, found: meta.len() as u64 };
        Error::Protocol { address: "this process".to_owned(), violation }
    };
    header.meta = u32::try_from(meta.len()).map_err(too_long)?;
    let head = header.encode();
    let mut floats = floats.into_iter();
    let mut batch: [IoSlice<'_>; BATCH] = [IoSlice::new(&[]); BATCH];
    batch[0] = IoSlice::new(&head);
    batch[1] = IoSlice::new(meta);
    let mut filled = 2;
    loop {
        for slice in floats.by_ref().take(BATCH - filled) {
            batch[filled] = IoSlice::new(cast::bytes(slice));
            filled += 1;
        }
        let full = filled == BATCH;
        let sent = connection.send(&mut batch[..filled]);
        sent.map_err(|source| lost(connection, source))?;
        if !full {
            return Ok(());
        }
        filled = 0;
    }
}

/// Sends frames without meta, several at a time.
pub fn send_frames<'a>(
    connection: &mut dyn Connection,
    frames: impl IntoIterator<Item = (Header, &'a [f32])>,
) -> Result<(), Error> {
    const FRAMES: usize = BATCH / 2;
    let mut frames = frames.into_iter();
    loop {
        let mut heads = [[0; HEADER]; FRAMES];
        let mut bodies: [&[f32]; FRAMES] = [&[]; FRAMES];
        let mut filled = 0;
        for ((header, floats), (head, body)) in frames.by_ref().take(FRAMES).zip(heads.iter_mut().zip(&mut bodies)) {
            (*head, *body) = (header.encode(), floats);
            filled += 1;
        }
        if filled == 0 {
            return Ok(());
        }
        let mut batch: [IoSlice<'_>; BATCH] = [IoSlice::new(&[]); BATCH];
        for ((head, body), places) in heads.iter().zip(bodies).zip(batch.chunks_exact_mut(2)).take(filled) {
            places.copy_from_slice(&[IoSlice::new(head), IoSlice::new(cast::bytes(body))]);
        }
        let sent = connection.send(&mut batch[..2 * filled]);
        sent.map_err(|source| lost(connection, source))?;
    }
}

/// Receives the fixed part of the next frame.
pub fn recv_header(connection: &mut dyn Connection) -> Result<Header, Error> {
    let mut bytes = [0; HEADER];
    let got = connection.recv(&mut [IoSliceMut::new(&mut bytes)]);
    got.map_err(|source| lost(connection, source))?;
    Header::decode(&bytes).map_err(|violation| violated(connection, violation))
}

/// Receives the meta, at most `limit` bytes.
pub fn recv_meta(connection: &mut dyn Connection, header: &Header, limit: usize) -> Result<Vec<u8>, Error> {
    let mut meta = Vec::new();
    recv_meta_into(connection, header, limit, &mut meta)?;
    Ok(meta)
}

/// The same in the place of what `meta` has.
pub fn recv_meta_into(
    connection: &mut dyn Connection,
    header: &Header,
    limit: usize,
    meta: &mut Vec<u8>,
) -> Result<(), Error> {
    if header.meta as usize > limit {
        let (allowed, found) = (limit as u64, u64::from(header.meta));
        return Err(violated(connection, Violation::Length { what: "meta", allowed, found }));
    }
    meta.clear();
    meta.resize(header.meta as usize, 0);
    let got = connection.recv(&mut [IoSliceMut::new(meta)]);
    got.map_err(|source| lost(connection, source))
}

/// Receives floats straight into the given slices.
pub fn recv_floats<'a>(
    connection: &mut dyn Connection,
    slices: impl IntoIterator<Item = &'a mut [f32]>,
) -> Result<(), Error> {
    let mut slices = slices.into_iter();
    loop {
        let mut batch: [IoSliceMut<'_>; BATCH] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut filled = 0;
        for (place, slice) in batch.iter_mut().zip(slices.by_ref()) {
            *place = IoSliceMut::new(cast::bytes_mut(slice));
            filled += 1;
        }
        if filled == 0 {
            return Ok(());
        }
        let got = connection.recv(&mut batch[..filled]);
        got.map_err(|source| lost(connection, source))?;
    }
}

/// Bytes of a [`Place`] before the leases of a Push.
pub(crate) const PLACE: usize = 8;

pub(crate) fn encode_place(place: Place) -> [u8; PLACE] {
    (u64::from(place.of) << 32 | u64::from(place.index)).to_le_bytes()
}

/// The reverse of [`encode_place`], of the first bytes of `meta`.
pub(crate) fn decode_place(meta: &[u8]) -> Result<Place, Violation> {
    let bytes: Option<[u8; PLACE]> = meta.first_chunk().copied();
    let number = bytes.map(u64::from_le_bytes).unwrap_or_default();
    let place = Place { index: number as u32, of: (number >> 32) as u32 };
    if place.index < place.of {
        return Ok(place);
    }
    Err(Violation::Malformed { what: "place", detail: format!("{} of {}", place.index, place.of) })
}

/// Receives and forgets `count` floats, of a frame that is refused.
pub fn skip_floats(connection: &mut dyn Connection, count: u64) -> Result<(), Error> {
    let mut sink = [0.0; 4096];
    let mut left = count;
    while left > 0 {
        let part = left.min(sink.len() as u64);
        recv_floats(connection, [&mut sink[..part as usize]])?;
        left -= part;
    }
    Ok(())
}

/// Checks that an answer is of the kind that is due; a Refused becomes the error that it carries.
pub fn expect(connection: &mut dyn Connection, kind: Kind, name: &'static str) -> Result<Header, Error> {
    let header = expect_any(connection)?;
    if header.kind != kind {
        let found = format!("{:?}", header.kind);
        return Err(violated(connection, Violation::UnexpectedKind { expected: name, found }));
    }
    Ok(header)
}

/// The next header, of whatever kind; a Refused becomes the error that it carries.
pub fn expect_any(connection: &mut dyn Connection) -> Result<Header, Error> {
    let header = recv_header(connection)?;
    if header.kind == Kind::Refused {
        let meta = recv_meta(connection, &header, MAX_META)?;
        let refusal: Refusal = from_json(connection, "refusal", &meta)?;
        return Err(Error::Refused { address: connection.peer().to_owned(), refusal });
    }
    Ok(header)
}

/// Sends a refusal.
pub fn refuse(connection: &mut dyn Connection, refusal: &Refusal) -> Result<(), Error> {
    let meta = to_json("refusal", refusal)?;
    send(connection, Header::new(Kind::Refused), &meta, [])
}

/// Meta as JSON: used where a frame is rare.
pub fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| {
        let violation = Violation::Malformed { what, detail: error.to_string() };
        Error::Protocol { address: "this process".to_owned(), violation }
    })
}

/// The reverse of [`to_json`].
pub fn from_json<T: DeserializeOwned>(
    connection: &dyn Connection,
    what: &'static str,
    meta: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(meta)
        .map_err(|error| violated(connection, Violation::Malformed { what, detail: error.to_string() }))
}

/// The connection ended.
pub(crate) fn lost(connection: &dyn Connection, source: io::Error) -> Error {
    Error::PeerLost { address: connection.peer().to_owned(), source }
}

/// The peer sent what it must not.
pub(crate) fn violated(connection: &dyn Connection, violation: Violation) -> Error {
    Error::Protocol { address: connection.peer().to_owned(), violation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        for kind in KINDS {
            let mut header = Header::new(kind);
            (header.flags, header.worker, header.seq, header.step) = (5, u32::MAX, 1 << 40, u64::MAX);
            (header.rows, header.loss, header.meta, header.body, header.aux) = (7, -0.5, 9, 1 << 50, 3);
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
        let mut bytes = Header::new(Kind::Ok).encode();
        bytes[4] = 200;
        assert_eq!(Header::decode(&bytes), Err(Violation::UnknownKind(200)));
        bytes[0] = 0;
        assert_eq!(Header::decode(&bytes), Err(Violation::Magic));
    }

    #[test]
    fn places_survive_the_wire_and_bad_ones_do_not() {
        let place = Place { index: 6, of: 7 };
        let mut meta = encode_place(place).to_vec();
        meta.push(9);
        assert_eq!(decode_place(&meta), Ok(place));
        assert!(decode_place(&meta[..PLACE - 1]).is_err());
        assert!(decode_place(&encode_place(Place { index: 7, of: 7 })).is_err());
    }
}
