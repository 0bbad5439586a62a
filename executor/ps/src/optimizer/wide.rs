//! The inner loops with registers as wide as this processor has them, though all is compiled for any x86-64.
//!
//! Each element is computed by the same operations in the same order, so it has the same bits whatever the width: nothing
//! is fused into one rounding.

/// Loops over elements. Not a closure, which would not be inlined for certain, and then has the lanes of any x86-64.
pub(super) trait Loops {
    type Done;
    /// To be marked as always inlined, with all that has loops.
    fn run(self) -> Self::Done;
}

/// Runs them in eight lanes, where there are so many.
#[inline]
pub(super) fn wide<L: Loops>(loops: L) -> L::Done {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has the instructions.
        #[expect(unsafe_code, reason = "the compiler does not know for which processor it is called")]
        return unsafe { in_eight_lanes(loops) };
    }
    loops.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn in_eight_lanes<L: Loops>(loops: L) -> L::Done {
    loops.run()
}

#[cfg(test)]
mod tests {
    use crate::optimizer::Optimizer;
    use crate::reference::Random;

    #[test]
    fn every_rule_has_the_same_bits_in_any_number_of_lanes() {
        let mut random = Random::new(7);
        let mut values = |len: usize| (0..len).map(|_| random.uniform()).collect::<Vec<f32>>();
        let momentum = Optimizer::Sgd { learning_rate: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.01 };
        let rms = Optimizer::RmsProp {
            learning_rate: 0.01,
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            momentum: 0.9,
            centered: true,
        };
        for optimizer in [
            Optimizer::sgd(0.1),
            momentum,
            Optimizer::adagrad(0.1),
            Optimizer::adam(0.1),
            Optimizer::adamw(0.1),
            Optimizer::lamb(0.1),
            rms,
            Optimizer::adadelta(1.0),
            Optimizer::ftrl(0.1),
        ] {
            for len in [1, 7, 8, 100] {
                let (params, grad) = (values(len), values(len));
                let slots: Vec<Vec<f32>> = optimizer.slots().iter().map(|_| values(len)).collect();
                let update = optimizer.update(3);
                let run = |in_lanes: bool| {
                    let (mut params, mut slots) = (params.clone(), slots.clone());
                    let mut views: Vec<&mut [f32]> = slots.iter_mut().map(Vec::as_mut_slice).collect();
                    match in_lanes {
                        true => update.apply(0.5, &mut params, &grad, &mut views).unwrap(),
                        false => update.apply_plain(0.5, &mut params, &grad, &mut views).unwrap(),
                    }
                    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    slots.iter().map(|slot| bits(slot)).chain([bits(&params)]).collect::<Vec<_>>()
                };
                assert_eq!(run(true), run(false), "{optimizer:?} {len}");
            }
        }
    }
}
