//! The values of a checkpoint by name.

use tfos_ps::{Layout, Variable};

use super::fit;
use crate::Error;
use crate::checkpoint::Checkpoint;

impl Checkpoint {
    /// For the model with this layout: weights alone lie as their file had them.
    pub fn for_model(self, path: &str, layout: &Layout) -> Result<Self, Error> {
        if self.optimizer.is_some() {
            return Ok(self);
        }
        let fitted = fit(&self.layout, &self.state, layout);
        let state = fitted.map_err(|why| Error::Mismatch { path: path.to_owned(), why })?;
        Ok(Self { layout: layout.clone(), optimizer: None, state })
    }

    /// Variables, then buffers, with their values.
    pub fn values(&self) -> Vec<(&Variable, &[f32])> {
        fn of<'a>(list: &'a [Variable], flat: &'a [f32]) -> impl Iterator<Item = (&'a Variable, &'a [f32])> {
            list.iter().map(|v| (v, flat.get(v.offset..v.offset + v.len()).unwrap_or_default()))
        }
        let Self { layout, state, .. } = self;
        of(&layout.variables, &state.params).chain(of(&layout.buffers, &state.buffers)).collect()
    }
}
