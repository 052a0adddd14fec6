//! Nobody gets in without the run's token.

use mks2_proto::{
    dial::{self, AUTHORIZATION},
    failure::Failure,
    ids::Token,
    v1,
};
use tonic::{Request, Status, service::Interceptor};

/// Checks the token of each request before anything of it is decoded.
#[derive(Clone)]
pub(crate) struct Doorkeeper {
    pub(crate) token: Token,
}

impl Interceptor for Doorkeeper {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request
            .metadata()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let given = header.and_then(|text| text.strip_prefix("Bearer "));
        match given {
            Some(given) if self.token.matches(given) => Ok(request),
            given => Err(refusal(given.is_some())),
        }
    }
}

fn refusal(was_given: bool) -> Status {
    let why = if was_given {
        "the token is another run's"
    } else {
        "no token was sent"
    };
    let failure = Failure::environment(
        "the coordinator does not let this program in",
        why,
        "set MKS2_TOKEN to the token that the run was started with",
    );
    dial::status(&v1::Refusal {
        reason: v1::RefusalReason::Token.into(),
        term: 0,
        generation: 0,
        failure: Some((&failure).into()),
    })
}
