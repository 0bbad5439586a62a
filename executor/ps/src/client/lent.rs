//! Parameters that stay where a ps of this host has them.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::PsClient;
use super::window::{self, lock};
use crate::memory::View;

/// The parameters of one answer. They stay as they are until the client pushes again or is dropped; what is read later is
/// of another step.
#[derive(Debug, Clone, Default)]
pub struct Lent {
    /// Of each ps that has any, its range of the flat vector.
    parts: Arc<Vec<(Range<usize>, Arc<View>)>>,
}

/// Consecutive elements of a [`Lent`].
#[derive(Debug, Clone)]
pub struct LentPart {
    view: Arc<View>,
    at: usize,
    len: usize,
}

impl Lent {
    /// The elements `range` of the flat vector, if one ps has them all.
    pub fn part(&self, range: Range<usize>) -> Option<LentPart> {
        let within = |(place, _): &&(Range<usize>, _)| place.start <= range.start && range.end <= place.end;
        let (place, view) = self.parts.iter().find(within)?;
        Some(LentPart { view: Arc::clone(view), at: range.start - place.start, len: range.len() })
    }
}

impl LentPart {
    /// Of the first element; valid for as long as this lives. Who writes there gets a page of its own, which no later answer
    /// changes: see [`PsClient::forget_lent`].
    pub fn as_mut_ptr(&self) -> *mut f32 {
        // A part lies within the view.
        self.view.as_mut_ptr().wrapping_add(self.at)
    }
}

impl Deref for LentPart {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` f32 of a mapping that `view` keeps; any bits are an f32. The ps writes here only when it has been told
        // that nobody reads, or that the job is over for this worker.
        #[expect(unsafe_code, reason = "a mapping is a raw pointer")]
        unsafe {
            std::slice::from_raw_parts(self.as_mut_ptr(), self.len)
        }
    }
}

impl PsClient {
    /// Whether parameters need not be copied: every ps that has any is on this host, and there was a first push.
    pub fn lends(&self) -> bool {
        !self.windows.is_empty()
            && self.windows.iter().zip(&self.ranges).all(|(window, range)| range.is_empty() || lock(window).is_some())
    }

    /// What was lent is seen anew from the next answer on: to be said when somebody wrote to it.
    pub fn forget_lent(&mut self) {
        let windows = self.windows.iter_mut().filter_map(|window| window.get_mut().ok()?.as_mut());
        windows.for_each(window::Open::forget);
    }

    /// Of the last answer.
    pub(super) fn lent(&mut self) -> Lent {
        let part = |(window, range): (_, &Range<usize>)| Some((range.clone(), lock(window).as_ref()?.lent()?));
        let parts = self.windows.iter().zip(&self.ranges).filter_map(part);
        match Arc::get_mut(&mut self.lent.parts) {
            Some(list) => {
                list.clear();
                list.extend(parts);
            }
            None => self.lent.parts = Arc::new(parts.collect()),
        }
        self.lent.clone()
    }
}
