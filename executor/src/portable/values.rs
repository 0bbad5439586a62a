//! The values of a checkpoint by name.

use tfos_ps::Variable;

use crate::checkpoint::Checkpoint;

impl Checkpoint {
    /// Variables, then buffers, with their values.
    pub fn values(&self) -> Vec<(&Variable, &[f32])> {
        fn of<'a>(list: &'a [Variable], flat: &'a [f32]) -> impl Iterator<Item = (&'a Variable, &'a [f32])> {
            list.iter().map(|v| (v, flat.get(v.offset..v.offset + v.len()).unwrap_or_default()))
        }
        let Self { layout, state, .. } = self;
        of(&layout.variables, &state.params).chain(of(&layout.buffers, &state.buffers)).collect()
    }
}
