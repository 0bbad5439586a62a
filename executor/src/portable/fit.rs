//! Values found by their names: weights that came from elsewhere, in the order of the model that starts from them.
//!
//! A `state_dict` does not say which of its tensors are trained, so a model's variables and its buffers are looked for in
//! both.

use tfos_ps::{FullState, Layout, Variable};

use super::write::Shape;

/// The values of `state`, which lie as `saved` says, as `model` has them; or in what the two differ, by name.
pub fn fit(saved: &Layout, state: &FullState, model: &Layout) -> Result<FullState, String> {
    let all = |l: &Layout| -> Vec<Shape> {
        l.variables.iter().chain(&l.buffers).map(|v| (v.name.clone(), v.shape.clone())).collect()
    };
    let (theirs, ours) = (all(saved), all(model));
    let only = |a: &[Shape], b: &[Shape]| {
        a.iter().filter(|v| !b.contains(v)).map(|(n, s)| format!("{n} {s:?}")).collect::<Vec<_>>().join(", ")
    };
    let (extra, missing) = (only(&theirs, &ours), only(&ours, &theirs));
    if !extra.is_empty() || !missing.is_empty() {
        return Err(format!("it has [{extra}] where the model has [{missing}]; import the weights of this model"));
    }
    let values = |wanted: &Variable| {
        let in_list = |list: &[Variable], flat: &[f32]| {
            let v = list.iter().find(|v| v.name == wanted.name)?;
            flat.get(v.offset..v.offset + v.len()).map(<[f32]>::to_vec)
        };
        in_list(&saved.variables, &state.params).or_else(|| in_list(&saved.buffers, &state.buffers)).unwrap_or_default()
    };
    Ok(FullState {
        step: state.step,
        optimizer_step: 0,
        params: model.variables.iter().flat_map(values).collect(),
        slots: vec![],
        buffers: model.buffers.iter().flat_map(values).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_by_name_whether_they_are_trained_or_not() {
        let shapes = |names: &[(&str, i64)]| names.iter().map(|(n, k)| ((*n).to_owned(), vec![*k])).collect::<Vec<_>>();
        let saved = Layout::new(shapes(&[("norm.bias", 1), ("norm.running_mean", 2), ("w", 2)]), []).unwrap();
        let state = FullState {
            step: 0,
            optimizer_step: 0,
            params: vec![1.0, 2.0, 3.0, 4.0, 5.0],
            slots: vec![],
            buffers: vec![],
        };
        let model = Layout::new(shapes(&[("w", 2), ("norm.bias", 1)]), shapes(&[("norm.running_mean", 2)])).unwrap();
        let fitted = fit(&saved, &state, &model).unwrap();
        assert_eq!((fitted.params, fitted.buffers), (vec![1.0, 4.0, 5.0], vec![2.0, 3.0]));
        let other = Layout::new(shapes(&[("w", 3), ("norm.bias", 1), ("head", 9)]), []).unwrap();
        let why = fit(&saved, &state, &other).unwrap_err();
        assert!(why.contains("[norm.running_mean [2], w [2]] where the model has [head [9], w [3]]"), "{why}");
    }
}
