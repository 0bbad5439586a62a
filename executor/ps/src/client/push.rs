//! A push that waits for its result: the gradient to all shards, the new parameters back.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::exchange::recv_params;
use super::lent::Lent;
use super::window::lock;
use super::{Outcome, PsClient, Push};
use crate::cast;
use crate::compress::Feedback;
use crate::error::{Error, Violation};
use crate::flat;
use crate::transport::Connection;
use crate::wire::{self, Header, Kind};

/// Slices in order, and where each begins.
pub(super) type Pieces<'a> = Vec<(usize, &'a mut [f32])>;

impl PsClient {
    /// Pushes a gradient and waits until it is decided and applied on all shards; then `params` holds the new
    /// parameters. One slice per variable, in layout order.
    pub fn push_pull(&mut self, push: Push<'_>, params: &mut [&mut [f32]]) -> Result<Outcome, Error> {
        flat::check("parameters", params, self.total)?;
        let cuts = self.exchange.cut(flat::placed(params), &self.ranges);
        self.push_to(push, cuts, false)
    }

    /// As [`PsClient::push_pull`], but parameters stay where the ps have them; only the elements of `rest` are copied, each
    /// slice from where it begins in the flat vector on, in order. To be asked for where [`PsClient::lends`].
    pub fn push_pull_lent(
        &mut self,
        push: Push<'_>,
        rest: &mut [(usize, &mut [f32])],
    ) -> Result<(Outcome, Lent), Error> {
        if !self.lends() {
            let (expected, found) = ("a window to each".to_owned(), "none".to_owned());
            return Err(Error::Options { what: "ps that lend parameters", expected, found });
        }
        let segments = rest.iter_mut().map(|(start, slice)| (*start, &mut **slice));
        let cuts = self.exchange.cut(segments, &self.ranges);
        let outcome = self.push_to(push, cuts, true)?;
        Ok((outcome, self.lent()))
    }

    fn push_to(&mut self, push: Push<'_>, cuts: Vec<Pieces<'_>>, lend: bool) -> Result<Outcome, Error> {
        flat::check("gradients", push.gradients, self.total)?;
        if let Some(buffers) = push.buffers {
            flat::check("buffers", buffers, self.buffers_total)?;
        }
        let sliced = self.complete(push.gradients)?;
        self.seq += 1;
        let (mut frame, seq, feedback, windows) = (self.frame(Kind::PushPull), self.seq, &self.feedback, &self.windows);
        frame.flags = if sliced { wire::SLICED } else { 0 };
        let send = |shard: usize, connection: &mut dyn Connection, range: Range<usize>| {
            let mut window = windows.get(shard).map(lock);
            let Some(open) = window.as_mut().and_then(|window| window.as_mut()) else {
                return send_push(shard, connection, range, frame, push.leases, &push, feedback.get(shard));
            };
            open.place(connection, flat::cut(push.gradients, range.clone()), !sliced)?;
            let mut frame = frame;
            frame.flags = wire::WINDOW;
            send_push(shard, connection, range, frame, push.leases, &push, None)
        };
        let recv = |shard: usize, connection: &mut dyn Connection, range: Range<usize>, pieces: &mut Pieces<'_>| {
            let header = wire::expect(connection, Kind::Result, "Result")?;
            if header.seq != seq {
                let violation = Violation::Mismatch { what: "seq of the answer", expected: seq, found: header.seq };
                return Err(wire::violated(connection, violation));
            }
            let mut window = windows.get(shard).map(lock);
            match window.as_mut().and_then(|window| window.as_mut()) {
                Some(open) if header.flags & wire::WINDOW != 0 => {
                    open.read(connection, &header, range.len(), pieces, lend)?
                }
                _ => recv_params(connection, &header, range, pieces)?,
            }
            Ok(header)
        };
        let first = self.exchange.run(&mut self.shards, &self.closers, &self.ranges, cuts, send, recv)?;
        self.step = first.step;
        let (dropped, stop) = (first.flags & wire::DROPPED != 0, first.flags & wire::STOP != 0);
        if dropped {
            for (feedback, range) in self.feedback.iter().zip(&self.ranges) {
                feedback.lock().unwrap_or_else(PoisonError::into_inner).undo(flat::cut(push.gradients, range.clone()));
            }
        }
        self.open_windows()?;
        Ok(Outcome { step: self.step, dropped, stop })
    }
}

/// The shard's slice of a push; ps:0 also gets `meta` and what else belongs to it.
pub(super) fn send_push(
    shard: usize,
    connection: &mut dyn Connection,
    range: Range<usize>,
    mut header: Header,
    meta: &[u8],
    push: &Push<'_>,
    feedback: Option<&Mutex<Feedback>>,
) -> Result<(), Error> {
    let (mut meta, mut buffers) = (meta, push.buffers);
    if shard == 0 {
        (header.rows, header.loss) = (push.rows, push.loss);
    } else {
        (meta, buffers) = (&[], None);
    }
    if let Some(buffers) = buffers {
        header.flags |= wire::BUFFERS;
        header.aux = buffers.iter().map(|buffer| buffer.len() as u64).sum();
    }
    let buffers = buffers.unwrap_or(&[]).iter().copied();
    if header.flags & (wire::SLICED | wire::WINDOW) != 0 {
        return wire::send(connection, header, meta, buffers);
    }
    let gradient = flat::cut(push.gradients, range.clone());
    let Some(feedback) = feedback else {
        header.body = range.len() as u64;
        return wire::send(connection, header, meta, gradient.chain(buffers));
    };
    let mut feedback = feedback.lock().unwrap_or_else(PoisonError::into_inner);
    header.flags |= feedback.compress().flag();
    let codes = cast::floats(feedback.encode(gradient));
    header.body = codes.len() as u64;
    wire::send(connection, header, meta, std::iter::once(codes).chain(buffers))
}
