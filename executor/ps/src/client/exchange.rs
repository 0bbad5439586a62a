//! One push to all shards at once: who sends and receives when, and which error counts.

use std::ops::Range;

use super::push::Pieces;
use crate::error::{Error, Violation};
use crate::transport::{Closer, Connection};
use crate::wire::{self, Header};

/// Below this many bytes per shard and direction, a thread costs more than it gains.
const PARALLEL_BYTES: usize = 1 << 18;

/// Sends to and receives from all shards, each into its `cuts`: for large slices each in a thread of its own, otherwise first all
/// sends, then all receives. Neither can lock up, see `wire`.
pub(super) fn exchange(
    shards: &mut [Box<dyn Connection>],
    closers: &[Box<dyn Closer>],
    ranges: &[Range<usize>],
    cuts: Vec<Pieces<'_>>,
    send: impl Fn(usize, &mut dyn Connection, Range<usize>) -> Result<(), Error> + Sync,
    recv: impl Fn(usize, &mut dyn Connection, Range<usize>, Pieces<'_>) -> Result<Header, Error> + Sync,
) -> Result<Vec<Header>, Error> {
    let count = shards.len();
    let range = |shard: usize| ranges.get(shard).cloned().unwrap_or_default();
    let total = ranges.last().map_or(0, |last| last.end);
    let shards = shards.iter_mut().zip(cuts).enumerate();
    let results: Vec<Result<Header, Error>> = if size_of::<f32>() * total / count.max(1) < PARALLEL_BYTES {
        // Up to the first error: after it, the answers of the others may never come.
        let sent: Result<Vec<_>, Error> = shards
            .map(|(shard, (connection, pieces))| {
                send(shard, &mut **connection, range(shard))?;
                Ok((shard, connection, pieces))
            })
            .collect();
        let answers: Result<Vec<_>, Error> = sent.and_then(|sent| {
            sent.into_iter()
                .map(|(shard, connection, pieces)| recv(shard, &mut **connection, range(shard), pieces))
                .collect()
        });
        match answers {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        }
    } else {
        let one = |shard: usize, connection: &mut dyn Connection, pieces| {
            let sent = send(shard, connection, range(shard));
            let result = sent.and_then(|()| recv(shard, connection, range(shard), pieces));
            if result.is_err() {
                // The other shards may wait for this one for ever: their threads must come back too.
                closers.iter().for_each(|closer| closer.close());
            }
            result
        };
        std::thread::scope(|scope| {
            let mut shards = shards;
            let first = shards.next();
            let others: Vec<_> = shards
                .map(|(shard, (connection, pieces))| scope.spawn(move || one(shard, &mut **connection, pieces)))
                .collect();
            let mut results = Vec::with_capacity(count);
            results.extend(first.map(|(shard, (connection, pieces))| one(shard, &mut **connection, pieces)));
            results.extend(others.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::Stopped))));
            results
        })
    };
    // A typed refusal says more than the lost connections that follow from it.
    let (answers, errors): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let mut errors: Vec<Error> = errors.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() {
        return Ok(answers.into_iter().filter_map(Result::ok).collect());
    }
    closers.iter().for_each(|closer| closer.close());
    let cause = errors.iter().position(|error| !error.is_secondary()).unwrap_or(0);
    Err(errors.swap_remove(cause))
}

pub(super) fn recv_params(
    connection: &mut dyn Connection,
    header: &Header,
    range: Range<usize>,
    pieces: Pieces<'_>,
) -> Result<(), Error> {
    expect_length(connection, "parameters", range.len(), header.body)?;
    wire::recv_floats(connection, pieces.into_iter().map(|(_, piece)| piece))
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
