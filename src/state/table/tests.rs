use super::*;
use crate::{resilience::some_instant, telemetry::access_log::AccessLogWriter};

/// State that a spec of 0 replaces and another spec changes in place.
#[derive(Debug, Default)]
struct Counter(std::cell::Cell<u32>);

impl Reconfigure for Counter {
    type Spec = u32;

    fn create(_: &Arc<str>, spec: &u32, _: BuildContext<'_>) -> Self {
        Self(std::cell::Cell::new(*spec))
    }

    fn reconfigure(&self, spec: &u32, _: BuildContext<'_>) -> Option<Self> {
        self.0.set(self.0.get() + spec);
        (*spec == 0).then(Self::default)
    }
}

#[test]
fn state_is_kept_by_name_until_no_policy_set_uses_it() {
    let telemetry = Arc::new(Telemetry::new(AccessLogWriter::disabled(), || {
        std::time::UNIX_EPOCH
    }));
    let now = some_instant();
    let context = BuildContext {
        telemetry: &telemetry,
        now,
        epoch: now,
    };
    let (first, second): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    let mut table = Table::<Counter>::default();
    table.ensure(&second, &1, context);
    let state = table.ensure(&first, &1, context);
    assert_eq!(table.ensure(&first, &2, context).0.get(), 3);
    assert_eq!(state.0.get(), 3, "changed in place");
    let values = |table: &Table<Counter>| {
        let states = table.sorted();
        states.iter().map(|state| state.0.get()).collect::<Vec<_>>()
    };
    assert_eq!(values(&table), [3, 1], "sorted by name");
    assert!(table.remove_unused().is_empty());
    assert_eq!(table.ensure(&first, &0, context).0.get(), 0);
    assert_eq!(state.0.get(), 3, "replaced: holders keep the old state");
    assert_eq!(table.remove_unused(), [second]);
    assert_eq!(values(&table), [0]);
}
