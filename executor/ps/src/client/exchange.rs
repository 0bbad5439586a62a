//! One push to all shards at once: who sends and receives when, and which error counts.

use std::ops::Range;

use super::push::Pieces;
use crate::error::{Error, Violation};
use crate::flat;
use crate::team::Team;
use crate::transport::{Closer, Connection};
use crate::wire::{self, Header};

/// Below this many bytes per shard and direction, a thread costs more than it gains.
const PARALLEL_BYTES: usize = 1 << 18;

/// What pushes use again and again, so that they allocate nothing.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// Of each shard, in the exchange under way.
    answers: Vec<Result<Header, Error>>,
    /// Of each shard, empty.
    cuts: Vec<Pieces<'static>>,
    /// A thread for each shard but the first, once slices are large.
    team: Option<Team>,
}

impl Exchange {
    /// Where the answers of the shards go; to be given to `run`.
    pub(super) fn cut<'a>(
        &mut self,
        segments: impl Iterator<Item = (usize, &'a mut [f32])>,
        ranges: &[Range<usize>],
    ) -> Vec<Pieces<'a>> {
        let mut cuts: Vec<Pieces<'a>> = std::mem::take(&mut self.cuts);
        flat::cut_mut_into(segments, ranges.iter().cloned(), &mut cuts);
        cuts
    }

    /// Sends to and receives from all shards, each into its `cuts`: for large slices each in a thread of its own, otherwise first
    /// all sends, then all receives. Neither can lock up, see `wire`. Gives the answer of the first; all are of one step.
    pub(super) fn run<'a>(
        &mut self,
        shards: &mut [Box<dyn Connection>],
        closers: &[Box<dyn Closer>],
        ranges: &[Range<usize>],
        mut cuts: Vec<Pieces<'a>>,
        send: impl Fn(usize, &mut dyn Connection, Range<usize>) -> Result<(), Error> + Sync,
        recv: impl Fn(usize, &mut dyn Connection, Range<usize>, &mut Pieces<'a>) -> Result<Header, Error> + Sync,
    ) -> Result<Header, Error> {
        let count = shards.len();
        let range = |shard: usize| ranges.get(shard).cloned().unwrap_or_default();
        let total = ranges.last().map_or(0, |last| last.end);
        cuts.resize_with(count, Vec::new);
        self.answers.clear();
        self.answers.resize_with(count, || Err(Error::Stopped));
        let is_large = count > 1 && size_of::<f32>() * total / count >= PARALLEL_BYTES;
        let team = is_large.then(|| self.team.get_or_insert_with(|| Team::new("push", count - 1)));
        let done = match team.filter(|team| team.threads() == count - 1) {
            Some(team) => {
                let one = |shard: usize, connection: &mut dyn Connection, pieces: &mut Pieces<'a>| {
                    let sent = send(shard, connection, range(shard));
                    let result = sent.and_then(|()| recv(shard, connection, range(shard), pieces));
                    if result.is_err() {
                        // The other shards may wait for this one for ever: their threads must come back too.
                        closers.iter().for_each(|closer| closer.close());
                    }
                    result
                };
                at_once(team, 0, shards, &mut cuts, &mut self.answers, &one)
            }
            None => {
                let mut numbered = shards.iter_mut().enumerate();
                // Up to the first error: after it, the answers of the others may never come.
                let sent = numbered.try_for_each(|(shard, connection)| send(shard, &mut **connection, range(shard)));
                sent.and_then(|()| {
                    let mut all = shards.iter_mut().zip(&mut cuts).zip(&mut self.answers).enumerate();
                    all.try_for_each(|(shard, ((connection, pieces), answer))| {
                        *answer = Ok(recv(shard, &mut **connection, range(shard), pieces)?);
                        Ok(())
                    })
                })
            }
        };
        self.cuts = emptied(cuts);
        let answer = done.and_then(|()| self.conclude(shards));
        if answer.is_err() {
            closers.iter().for_each(|closer| closer.close());
        }
        answer
    }

    fn conclude(&mut self, shards: &[Box<dyn Connection>]) -> Result<Header, Error> {
        if let Some(first) = self.answers.iter().position(Result::is_err) {
            // A typed refusal says more than the lost connections that follow from it.
            let is_cause = |answer: &Result<Header, Error>| answer.as_ref().is_err_and(|error| !error.is_secondary());
            return self.answers.swap_remove(self.answers.iter().position(is_cause).unwrap_or(first));
        }
        let mut first: Option<Header> = None;
        for (shard, answer) in shards.iter().zip(&self.answers) {
            let Ok(answer) = answer else { continue };
            let (expected, found) = (first.get_or_insert(*answer).step, answer.step);
            if expected != found {
                return Err(wire::violated(
                    &**shard,
                    Violation::Mismatch { what: "step of the answer", expected, found },
                ));
            }
        }
        first.ok_or(Error::Stopped)
    }
}

/// All shards from number `shard` on. Each has a thread of its own, as there are as many as shards.
fn at_once<'a>(
    team: &Team,
    shard: usize,
    connections: &mut [Box<dyn Connection>],
    cuts: &mut [Pieces<'a>],
    answers: &mut [Result<Header, Error>],
    one: &(impl Fn(usize, &mut dyn Connection, &mut Pieces<'a>) -> Result<Header, Error> + Sync),
) -> Result<(), Error> {
    let ([connection, connections @ ..], [pieces, cuts @ ..], [answer, answers @ ..]) = (connections, cuts, answers)
    else {
        return Ok(());
    };
    let mut first = || {
        *answer = one(shard, &mut **connection, pieces);
        Ok(())
    };
    match connections {
        [] => first(),
        _ => team.join(first, || at_once(team, shard + 1, connections, cuts, answers, one)),
    }
}

/// The same lists without their elements, which were borrowed. The standard library collects a list from one of elements of
/// the same size in its memory.
fn emptied<'a>(cuts: Vec<Pieces<'_>>) -> Vec<Pieces<'a>> {
    cuts.into_iter().map(|pieces| pieces.into_iter().map_while(|_| None).collect()).collect()
}

pub(super) fn recv_params(
    connection: &mut dyn Connection,
    header: &Header,
    range: Range<usize>,
    pieces: &mut Pieces<'_>,
) -> Result<(), Error> {
    expect_length(connection, "parameters", range.len(), header.body)?;
    wire::recv_floats(connection, pieces.drain(..).map(|(_, piece)| piece))
}

pub(super) fn expect_length(
    connection: &dyn Connection,
    what: &'static str,
    allowed: usize,
    found: u64,
) -> Result<(), Error> {
    if found == allowed as u64 {
        return Ok(());
    }
    Err(wire::violated(connection, Violation::Length { what, allowed: allowed as u64, found }))
}
