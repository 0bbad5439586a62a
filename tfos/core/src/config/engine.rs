//! Who runs a query with an exchange (join, aggregate, window, sort, limit) before its rows are fed.

use super::raw::RawJob;
use super::words::words;

words! {
    /// A query engine.
    pub enum Engine {
        /// DataFusion in the executor of the chief.
        DataFusion = "datafusion",
        /// Apache Ballista: a scheduler in the driver, an executor in each that trains.
        Ballista = "ballista",
    }
}

impl Engine {
    /// Whether this program can run it.
    pub const fn is_built_in(self) -> bool {
        match self {
            Self::DataFusion => true,
            Self::Ballista => cfg!(feature = "ballista"),
        }
    }

    pub(super) fn check(raw: &RawJob, mut bad: impl FnMut(&str, String)) -> Option<Self> {
        let engine = raw.engine.as_deref()?.parse().map_err(|message| bad("engine", message)).ok()?;
        if !Self::is_built_in(engine) {
            bad("engine", "this program is built without Ballista; build it with `--features ballista`".into());
        }
        if engine == Self::Ballista && raw.deterministic.unwrap_or(false) {
            bad(
                "engine",
                "not `ballista` with --deterministic: after a shuffle rows come in another order each time".into(),
            );
        }
        Some(engine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_not_built_in_or_unknown_is_told() {
        let check = |word: &str| {
            let mut told = vec![];
            let raw = RawJob { engine: Some(word.into()), ..RawJob::default() };
            let engine = Engine::check(&raw, |key, message| told.push(format!("{key}: {message}")));
            (engine, told)
        };
        assert_eq!(check("datafusion"), (Some(Engine::DataFusion), vec![]));
        let (engine, told) = check("ballista");
        assert_eq!((engine, told.is_empty()), (Some(Engine::Ballista), cfg!(feature = "ballista")));
        assert!(told.iter().all(|t| t.contains("--features ballista")), "{told:?}");
        let (engine, told) = check("spark");
        assert!(engine.is_none() && told[0].contains("`spark`") && told[0].contains("`ballista`"), "{told:?}");
        assert_eq!(Engine::check(&RawJob::default(), |key, message| unreachable!("{key}: {message}")), None);
    }
}
