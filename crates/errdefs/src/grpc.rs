//! Conversions from and to `tonic::Status`.

use tonic::{Code, Status};

use crate::Error;

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        Status::new(Code::from_i32(err.class().code()), err.text())
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Error::from_code(status.code() as i32, status.message())
    }
}
