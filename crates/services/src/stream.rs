//! Answers in many messages.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream;
use tonic::Status;

/// An answer in many messages.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Objects in one message of a listing, as containerd sends them.
pub(crate) const PAGE_LEN: usize = 100;

/// Sends `items` in pages, each made into a message by `message`. No items, no message.
pub(crate) fn pages<I, T>(items: Vec<I>, message: fn(Vec<I>) -> T) -> Answers<T>
where
    I: Send + 'static,
    T: Send + 'static,
{
    let pages = stream::unfold(items.into_iter(), move |mut rest| async move {
        let page: Vec<I> = rest.by_ref().take(PAGE_LEN).collect();
        (!page.is_empty()).then(|| (Ok(message(page)), rest))
    });
    Box::pin(pages)
}

/// Sends `items` one in a message.
pub(crate) fn each<I, T>(items: Vec<I>, message: fn(I) -> T) -> Answers<T>
where
    I: Send + 'static,
    T: Send + 'static,
{
    Box::pin(stream::iter(items.into_iter().map(move |i| Ok(message(i)))))
}
