//! Deterministic training: parts of a step are pushed without waiting, parameters are asked for when they are needed.
//!
//! Who holds a part of step s + 1 may ask for the parameters of step s. Once they are there they stay until that part is
//! pushed, because step s + 1 is not made without it: so all shards give the same step, without any of them knowing of the
//! others.

use std::ops::Range;

use super::exchange::{expect_length, recv_params};
use super::push::{Pieces, send_push};
use super::{Awaited, PsClient, Push};
use crate::compress::Compress;
use crate::error::{Error, Violation};
use crate::flat;
use crate::sequencer::Place;
use crate::transport::Connection;
use crate::wire::{self, Header, Kind};

impl PsClient {
    /// The global step of the parameters that this worker was given last.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Pushes a part of the step after the parameters that this worker has, and returns as soon as it is on every shard.
    /// True when no push will be applied any more.
    pub fn push(&mut self, push: Push<'_>, place: Place) -> Result<bool, Error> {
        flat::check("gradients", push.gradients, self.total)?;
        if self.compress != Compress::None {
            let expected = "none in deterministic training, which sends every bit".to_owned();
            return Err(Error::Options { what: "compression", expected, found: self.compress.to_string() });
        }
        if let Some(buffers) = push.buffers {
            flat::check("buffers", buffers, self.buffers_total)?;
        }
        let sliced = self.complete(push.gradients)?;
        self.seq += 1;
        let (mut frame, seq) = (self.frame(Kind::Push), self.seq);
        frame.flags = if sliced { wire::SLICED } else { 0 };
        self.meta.clear();
        self.meta.extend_from_slice(&wire::encode_place(place));
        self.meta.extend_from_slice(push.leases);
        let meta = &self.meta;
        let send = |shard: usize, connection: &mut dyn Connection, range: Range<usize>| {
            send_push(shard, connection, range, frame, meta, &push, None)
        };
        // No parameters come back.
        let cuts = self.exchange.cut(std::iter::empty(), &self.ranges);
        let recv = |_, connection: &mut dyn Connection, _, _: &mut Pieces<'_>| {
            let header = wire::expect(connection, Kind::Ok, "Ok")?;
            if header.seq != seq {
                let violation = Violation::Mismatch { what: "seq of the answer", expected: seq, found: header.seq };
                return Err(wire::violated(connection, violation));
            }
            Ok(header)
        };
        let first = self.exchange.run(&mut self.shards, &self.closers, &self.ranges, cuts, send, recv)?;
        Ok(first.flags & wire::STOP != 0)
    }

    /// Fills the parameters and buffers of global step `step`, of which this worker holds a part of the next; returns after
    /// a moment if they are not there.
    pub fn await_step(
        &mut self,
        step: u64,
        params: &mut [&mut [f32]],
        buffers: &mut [&mut [f32]],
    ) -> Result<Awaited, Error> {
        flat::check("parameters", params, self.total)?;
        flat::check("buffers", buffers, self.buffers_total)?;
        let worker = self.worker;
        let mut cuts = flat::cut_mut(flat::placed(params), self.ranges.iter().cloned()).into_iter();
        // One after the other: ps:0 decides, so when it is there the others soon are too.
        for (shard, (connection, range)) in self.shards.iter_mut().zip(&self.ranges).enumerate() {
            let connection = &mut **connection;
            let mut pieces = cuts.next().unwrap_or_default();
            let header = loop {
                let header = ask(connection, worker, step)?;
                match header.kind {
                    Kind::State => break header,
                    _ if header.flags & wire::STOP != 0 => return Ok(Awaited::Over),
                    _ if shard == 0 => return Ok(Awaited::NotYet),
                    _ => {}
                }
            };
            if header.step != step {
                let violation = Violation::Mismatch { what: "step of the answer", expected: step, found: header.step };
                return Err(wire::violated(connection, violation));
            }
            recv_params(connection, &header, range.clone(), &mut pieces)?;
            if shard == 0 {
                expect_length(connection, "buffers", self.buffers_total, header.aux)?;
                wire::recv_floats(connection, buffers.iter_mut().map(|buffer| &mut **buffer))?;
            }
        }
        self.step = step;
        Ok(Awaited::Ready)
    }
}

/// Asks once; the answer is a State, whose floats are still to be read, or an Ok.
fn ask(connection: &mut dyn Connection, worker: u32, step: u64) -> Result<Header, Error> {
    let mut header = Header::new(Kind::Await);
    (header.worker, header.step) = (worker, step);
    wire::send(connection, header, &[], [])?;
    let header = wire::expect_any(connection)?;
    match header.kind {
        Kind::State | Kind::Ok => Ok(header),
        other => {
            let violation = Violation::UnexpectedKind { expected: "State or Ok", found: format!("{other:?}") };
            Err(wire::violated(connection, violation))
        }
    }
}
