//! Local SGD: a worker pushes the state that it has reached by itself and gets the mean of all.

use std::ops::Range;

use super::exchange::expect_length;
use super::{Outcome, PsClient, Push};
use crate::compress::Compress;
use crate::error::{Error, Violation};
use crate::flat;
use crate::transport::Connection;
use crate::wire::{self, Header, Kind};

/// One vector (the parameters, or a slot), in slices that together are it.
pub type Vector<'a> = Vec<&'a mut [f32]>;

impl PsClient {
    /// Fills the slots with those of the ps; returns how many updates of the optimizer they have seen.
    pub fn slots(&mut self, slots: &mut [Vector<'_>]) -> Result<u64, Error> {
        self.check_vectors(slots)?;
        let mut header = Header::new(Kind::Pull);
        (header.worker, header.flags) = (self.worker, wire::SLOTS);
        let mut optimizer_step = 0;
        for shard in 0..self.shards.len() {
            let range = self.range(shard);
            let connection = &mut *self.shards[shard];
            wire::send(connection, header, &[], [])?;
            let answer = wire::expect(connection, Kind::State, "State")?;
            receive(connection, &answer, &range, slots)?;
            optimizer_step = answer.rows;
        }
        Ok(optimizer_step)
    }

    /// Pushes `values`, the parameters and then each slot, and waits until they are averaged, or dropped; then they are
    /// what all nodes have. Also returns the updates of the optimizer that they count for. `push` needs no gradients.
    pub fn average(&mut self, push: Push<'_>, values: &mut [Vector<'_>]) -> Result<(Outcome, u64), Error> {
        self.check_vectors(values)?;
        if self.compress != Compress::None {
            let expected = "none where states are averaged".to_owned();
            return Err(Error::Options { what: "compression", expected, found: self.compress.to_string() });
        }
        if let Some(buffers) = push.buffers {
            flat::check("buffers", buffers, self.buffers_total)?;
        }
        self.seq += 1;
        let result = self.exchange_values(&push, values);
        if result.is_err() {
            // Some shards may have heard what others have not.
            self.canceller().cancel();
        }
        result
    }

    /// First all sends, then all receives: a ps reads all of a push before it answers.
    fn exchange_values(&mut self, push: &Push<'_>, values: &mut [Vector<'_>]) -> Result<(Outcome, u64), Error> {
        let (frame, seq) = (self.frame(Kind::PushPull), self.seq);
        let buffers = push.buffers.unwrap_or(&[]);
        for shard in 0..self.shards.len() {
            let range = self.range(shard);
            let mut header = frame;
            header.body = (range.len() * values.len()) as u64;
            let vectors: Vec<Vec<&[f32]>> = values.iter().map(|v| v.iter().map(|piece| &**piece).collect()).collect();
            let floats = vectors.iter().flat_map(|vector| flat::cut(vector, range.clone()));
            let connection = &mut *self.shards[shard];
            if shard > 0 {
                wire::send(connection, header, &[], floats)?;
                continue;
            }
            (header.rows, header.loss) = (push.rows, push.loss);
            if push.buffers.is_some() {
                header.flags = wire::BUFFERS;
                header.aux = buffers.iter().map(|buffer| buffer.len() as u64).sum();
            }
            wire::send(connection, header, push.leases, floats.chain(buffers.iter().copied()))?;
        }
        let mut first: Option<Header> = None;
        for shard in 0..self.shards.len() {
            let range = self.range(shard);
            let connection = &mut *self.shards[shard];
            let answer = wire::expect(connection, Kind::Result, "Result")?;
            let step = first.map_or(answer.step, |first| first.step);
            for (what, expected, found) in
                [("seq of the answer", seq, answer.seq), ("step of the answer", step, answer.step)]
            {
                if expected != found {
                    return Err(wire::violated(connection, Violation::Mismatch { what, expected, found }));
                }
            }
            receive(connection, &answer, &range, values)?;
            first.get_or_insert(answer);
        }
        let first = first.ok_or(Error::Stopped)?;
        self.step = first.step;
        let dropped = first.flags & wire::DROPPED != 0;
        Ok((Outcome { step: first.step, dropped, stop: first.flags & wire::STOP != 0 }, first.rows))
    }

    fn check_vectors(&self, vectors: &[Vector<'_>]) -> Result<(), Error> {
        vectors.iter().try_for_each(|vector| flat::check("values", vector, self.total))
    }

    fn range(&self, shard: usize) -> Range<usize> {
        self.ranges.get(shard).cloned().unwrap_or_default()
    }
}

/// The part of each vector that the shard has, one vector after the other.
fn receive(
    connection: &mut dyn Connection,
    header: &Header,
    range: &Range<usize>,
    vectors: &mut [Vector<'_>],
) -> Result<(), Error> {
    expect_length(connection, "values", range.len() * vectors.len(), header.body)?;
    for vector in vectors {
        // What is before the range is another shard's.
        let cuts = flat::cut_mut(flat::placed(vector), [0..range.start, range.clone()].into_iter());
        let pieces = cuts.into_iter().nth(1).unwrap_or_default();
        wire::recv_floats(connection, pieces.into_iter().map(|(_, piece)| piece))?;
    }
    Ok(())
}
