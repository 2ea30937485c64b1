//! Hands one value from the worker's dispatch to a task of the same worker.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Shared<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sender_alive: bool,
    receiver_alive: bool,
}

pub struct Sender<T>(Rc<RefCell<Shared<T>>>);

/// Resolves to the value, or to `None` when the sender was dropped without sending.
pub struct Receiver<T>(Rc<RefCell<Shared<T>>>);

pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Rc::new(RefCell::new(Shared {
        value: None,
        waker: None,
        sender_alive: true,
        receiver_alive: true,
    }));
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Gives the value back when nobody waits for it any more.
    pub fn send(self, value: T) -> Result<(), T> {
        let mut shared = self.0.borrow_mut();
        if !shared.receiver_alive {
            return Err(value);
        }
        shared.value = Some(value);
        Ok(())
    }

    pub fn is_abandoned(&self) -> bool {
        !self.0.borrow().receiver_alive
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut shared = self.0.borrow_mut();
            shared.sender_alive = false;
            shared.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.receiver_alive = false;
        shared.waker = None;
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut shared = self.0.borrow_mut();
        if let Some(value) = shared.value.take() {
            return Poll::Ready(Some(value));
        }
        if !shared.sender_alive {
            return Poll::Ready(None);
        }
        shared.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<T>(receiver: &mut Receiver<T>) -> Poll<Option<T>> {
        Pin::new(receiver).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_value_arrives_once() {
        let (sender, mut receiver) = channel();
        assert_eq!(poll(&mut receiver), Poll::Pending);
        assert_eq!(sender.send(5), Ok(()));
        assert_eq!(poll(&mut receiver), Poll::Ready(Some(5)));
    }

    #[test]
    fn a_dropped_sender_ends_the_wait_and_a_dropped_receiver_gives_the_value_back() {
        let (sender, mut receiver) = channel::<i32>();
        drop(sender);
        assert_eq!(poll(&mut receiver), Poll::Ready(None));
        let (sender, receiver) = channel();
        drop(receiver);
        assert!(sender.is_abandoned());
        assert_eq!(sender.send(5), Err(5));
    }
}
