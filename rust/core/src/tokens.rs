//! The tokens of a sequence, seen as one run.

use crate::ids::TokenId;

/// A prompt followed by what was generated after it.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    prompt: &'a [TokenId],
    output: &'a [TokenId],
}

impl<'a> Tokens<'a> {
    /// The run `prompt ++ output`.
    pub const fn new(prompt: &'a [TokenId], output: &'a [TokenId]) -> Self {
        Self { prompt, output }
    }

    /// Number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "a sequence always has a prompt")]
    pub const fn len(&self) -> u32 {
        (self.prompt.len() + self.output.len()) as u32
    }

    /// The token at `position`.
    pub fn get(&self, position: u32) -> TokenId {
        let position = position as usize;
        match self.prompt.get(position) {
            Some(token) => *token,
            None => self.output[position - self.prompt.len()],
        }
    }

    /// The tokens `start..end` (clipped to the run) as a slice; `scratch` is used where the slice
    /// crosses from the prompt into the output.
    pub fn slice<'s>(&self, start: u32, end: u32, scratch: &'s mut Vec<TokenId>) -> &'s [TokenId]
    where
        'a: 's,
    {
        let start = start as usize;
        let end = (end.min(self.len())) as usize;
        let prompt_len = self.prompt.len();
        if end <= prompt_len {
            return &self.prompt[start..end];
        }
        if start >= prompt_len {
            return &self.output[start - prompt_len..end - prompt_len];
        }
        scratch.clear();
        scratch.extend_from_slice(&self.prompt[start..]);
        scratch.extend_from_slice(&self.output[..end - prompt_len]);
        scratch
    }
}
