//! The smallest engine there is, behind the scheduler.

use consort_core::*;
use consort_scheduler::{FrontEnd, Scheduled, SchedulerConfig};

use crate::parrot::Parrot;
use crate::support::{ask, collect};

#[test]
fn a_parrot_is_a_backend() {
    let factory = || Parrot::new(8, &[1, 2, 3, 4, 0], DevicePolicy::Named(Device::Cpu));
    let parrot = Scheduled::spawn(factory, FrontEnd::default(), SchedulerConfig::default()).unwrap();
    let reply = collect(parrot.generate(ask(&[5, 1], 10)).unwrap()).unwrap();
    assert_eq!((reply.ids, reply.reason), (vec![2, 3, 4], FinishReason::EndToken(0)));
    let reply = collect(parrot.generate(ask(&[5, 1, 1, 1], 2)).unwrap()).unwrap();
    assert_eq!((reply.ids, reply.reason), (vec![2, 3], FinishReason::Length));
    assert_eq!((parrot.name(), parrot.evidence().device), ("parrot", Device::Cpu));
    let adapted = crate::support::with_adapter(ask(&[1], 2), "a", 1.0);
    assert_eq!(parrot.generate(adapted).unwrap_err().kind(), ErrorKind::Unsupported);
    let embed = EmbedRequest {
        prompt: crate::support::parts(&[1]),
        adapters: vec![],
        pooling: Pooling::Last,
        placement: PlacementRule::Any,
    };
    assert_eq!(block_on(parrot.embed(embed)).unwrap_err().kind(), ErrorKind::Unsupported);
}
