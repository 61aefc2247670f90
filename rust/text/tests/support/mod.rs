//! A compiler whose tokens are the bytes, so that a text is its tokens.

use std::sync::OnceLock;

use pagedkv_text::{Grammar, GrammarCompiler, GrammarLimits, GrammarSource, Spelling, TokenTable};

pub(crate) const VOCAB_SIZE: usize = 256;

/// The grammar, or what is wrong with it.
pub(crate) fn compile(source: &GrammarSource) -> Result<Grammar, String> {
    static COMPILER: OnceLock<GrammarCompiler> = OnceLock::new();
    let compiler = COMPILER.get_or_init(|| {
        let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let tokens = bytes.iter().map(|token| Some(token.as_str()));
        let spelling =
            Spelling::Fallback { replacements: vec![], has_byte_tokens: true, strip: None };
        let table = TokenTable::new(spelling, tokens, |_| false).unwrap();
        GrammarCompiler::new(&table, VOCAB_SIZE, GrammarLimits::default()).unwrap()
    });
    compiler.compile(source).map_err(|error| error.to_string())
}

/// Whether a text may be generated and end.
pub(crate) fn reads(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.matcher();
    let mut mask = [0_u32; VOCAB_SIZE / 32];
    text.bytes().all(|byte| matcher.push(u32::from(byte)).is_ok())
        && matcher.fill_mask(&mut mask).unwrap()
}
