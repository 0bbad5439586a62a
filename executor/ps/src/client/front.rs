//! Front layers first: of the gradients that wait to be sent, the newest goes next, which is the one nearest to the input.
//!
//! The backward pass makes gradients from the last layer to the first, the next forward pass reads parameters from the
//! first to the last; names and numbers of variables say nothing of that order. Where the wire is slower than the pass, gradients gather; a large one is sent in pieces, so that what
//! comes meanwhile and is needed earlier need not wait for the rest of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::stream::BUCKET;

/// Elements of a piece: a bucket full.
const PIECE: usize = BUCKET / size_of::<f32>();

/// Part of a gradient.
#[derive(Debug)]
pub struct Piece<T> {
    whole: Arc<T>,
    range: Range<usize>,
}

impl<T: AsRef<[f32]>> AsRef<[f32]> for Piece<T> {
    fn as_ref(&self) -> &[f32] {
        self.whole.as_ref().as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

/// An iterator over pieces of gradients that others make meanwhile: the variable's number, where in it the piece begins,
/// and the piece. It ends when all senders have gone and nothing waits.
#[derive(Debug)]
pub struct FrontFirst<T> {
    made: Receiver<(u32, T)>,
    /// The newest last: the variable's number, and what is to be sent of its gradient, from which element on.
    waiting: Vec<(u32, Arc<T>, usize)>,
}

impl<T: AsRef<[f32]>> FrontFirst<T> {
    /// Of gradients as they are made, with their variables' numbers. One that comes twice counts as it came last, from its
    /// beginning.
    pub fn new(made: Receiver<(u32, T)>) -> Self {
        Self { made, waiting: Vec::new() }
    }

    fn add(&mut self, (number, gradient): (u32, T)) {
        self.waiting.retain(|(other, ..)| *other != number);
        self.waiting.push((number, Arc::new(gradient), 0));
    }
}

impl<T: AsRef<[f32]>> Iterator for FrontFirst<T> {
    type Item = (u32, usize, Piece<T>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.waiting.is_empty() {
            let first = self.made.recv().ok()?;
            self.add(first);
        }
        while let Ok(made) = self.made.try_recv() {
            self.add(made);
        }
        let (number, whole, at) = self.waiting.last_mut()?;
        let number = *number;
        let len = (**whole).as_ref().len();
        let range = *at..len.min(*at + PIECE);
        let piece = Piece { whole: Arc::clone(whole), range: range.clone() };
        *at = range.end;
        if range.end == len {
            self.waiting.pop();
        }
        Some((number, range.start, piece))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Number, beginning, length and first value of the next piece.
    fn next(front: &mut FrontFirst<Vec<f32>>) -> Option<(u32, usize, usize, f32)> {
        front.next().map(|(number, at, piece)| (number, at, piece.as_ref().len(), piece.as_ref()[0]))
    }

    #[test]
    fn what_is_needed_first_is_sent_first_and_between_the_pieces_of_others() {
        let (sender, made) = channel();
        let mut front = FrontFirst::new(made);
        let make = |number: u32, len: usize| sender.send((number, vec![number as f32; len])).unwrap();
        make(7, 2 * PIECE + 1);
        assert_eq!(next(&mut front), Some((7, 0, PIECE, 7.0)), "nothing else has been made");
        for (number, len) in [(6, 5), (2, 3), (9, 4)] {
            make(number, len);
        }
        for expected in [(9, 0, 4, 9.0), (2, 0, 3, 2.0), (6, 0, 5, 6.0), (7, PIECE, PIECE, 7.0)] {
            assert_eq!(next(&mut front), Some(expected));
        }
        make(0, 1);
        drop(sender);
        assert_eq!(next(&mut front), Some((0, 0, 1, 0.0)));
        assert_eq!(next(&mut front), Some((7, 2 * PIECE, 1, 7.0)));
        assert_eq!(next(&mut front), None);
    }

    #[test]
    fn a_gradient_that_comes_again_is_sent_from_its_beginning() {
        let (sender, made) = channel();
        let mut front = FrontFirst::new(made);
        sender.send((1, vec![1.0; PIECE + 1])).unwrap();
        assert_eq!(next(&mut front), Some((1, 0, PIECE, 1.0)));
        sender.send((1, vec![2.0; PIECE + 1])).unwrap();
        drop(sender);
        assert_eq!(next(&mut front), Some((1, 0, PIECE, 2.0)));
        assert_eq!(next(&mut front), Some((1, PIECE, 1, 2.0)));
        assert_eq!(next(&mut front), None);
    }

    #[test]
    fn a_gradient_that_is_not_plain_is_passed_on_as_nothing() {
        let (sender, made) = channel();
        sender.send((3, Vec::new())).unwrap();
        drop(sender);
        let pieces: Vec<_> = FrontFirst::<Vec<f32>>::new(made).map(|(n, at, piece)| (n, at, piece.range)).collect();
        assert_eq!(pieces, [(3, 0, 0..0)]);
    }
}
