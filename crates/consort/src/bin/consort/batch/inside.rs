//! The model in this process, asked as a server is.

use consort::server::Inside;
use consort_batch::{Answer, Fault, Place, Request, Target};
use consort_core::BoxFuture;

/// All that `consort serve` answers, without a socket.
pub struct Model(pub Inside);

impl Target for Model {
    fn place(&self) -> Place {
        Place::Here
    }

    fn ask<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Answer, Fault>> {
        Box::pin(async {
            let answered = self.0.ask(request.url, request.body.clone()).await;
            Ok(Answer {
                status: answered.status,
                request_id: answered.request_id,
                retry_after: answered.retry_after,
                retry: None,
                body: answered.body.into(),
            })
        })
    }
}
