//! How messages cross the wire: protobuf, with bad requests answered as what they are.

use std::marker::PhantomData;

use prost::{Message, Name};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstEncoder};

/// The codec of all services.
///
/// A *request* that does not decode (invalid UTF-8, a nesting bomb, rubbish) is certainly not
/// applied, so the server refuses it with INVALID_ARGUMENT. A *response* that does not decode says
/// nothing about the request, so the client sees INTERNAL.
#[derive(Debug, Clone)]
pub struct WireCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for WireCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for WireCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = WireDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        WireDecoder(PhantomData)
    }
}

/// The decoding half of [`WireCodec`].
#[derive(Debug, Clone)]
pub struct WireDecoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> Decoder for WireDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(buffer).map(Some).map_err(|error| {
            let text = format!("{} does not decode: {error}", U::NAME);
            // Every method has one request and one response type, and they are named so.
            if U::NAME.ends_with("Request") {
                Status::invalid_argument(text)
            } else {
                Status::internal(text)
            }
        })
    }
}
