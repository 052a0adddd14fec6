//! Ten thousand texts that tokenizers get wrong: the same ones as `tests/reference/nasty.py` makes, where
//! the lists are explained.

use mks2_proto::splitmix;

pub(crate) const COUNT: u64 = 10_000;

const SPACES: [&str; 14] = [
    " ", "  ", "\t", "\n", "\r\n", "\n\n", "\u{a0}", "\u{2003}", "\u{3000}", "\u{85}", "\u{b}",
    "\u{c}", "\u{1c}", "\u{2028}",
];
const MARKS: [&str; 21] = [
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<pad>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<tool_call>",
    "<s",
    "<|",
    "|>",
    "<|eot_id",
    " <s> ",
    "\u{2581}",
];
const KNOTS: [&str; 31] = [
    "e\u{301}",
    "\u{e9}",
    "a\u{308}\u{323}",
    "\u{1100}\u{1161}\u{11a8}",
    "\u{ac01}",
    "\u{212b}",
    "\u{fb01}",
    "\u{200b}",
    "\u{200d}",
    "\u{200e}\u{5d0}\u{200f}",
    "\u{202e}abc\u{202c}",
    "\u{feff}",
    "\u{ad}",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}",
    "\u{1f1e9}\u{1f1ea}",
    "\u{1f44d}\u{1f3fd}",
    "1\u{fe0f}\u{20e3}",
    "\u{1d538}",
    "\u{2f800}",
    "\u{fffd}",
    "\u{fffe}",
    "\u{10ffff}",
    "\u{e33}\u{e49}",
    "\u{915}\u{94d}\u{937}",
    "\u{f73}",
    "\u{344}",
    "\u{2126}",
    "\u{1e9b}\u{323}",
    "\u{130}",
    "\u{df}",
];
const CLIPPED: [&str; 10] = [
    "'s",
    "'T",
    "'re",
    "'VE",
    "'ll",
    "'\u{17f}",
    "'D",
    "\u{2019}s",
    "n't",
    "''m",
];
const SIGNS: [&str; 16] = [
    "...", "!?", "--", "#", "$%", "\\\\", "()", "\u{20ac}", "\u{3002}", "_", "*/", "\"", "`",
    "\u{b2}", "\u{2167}", "=>",
];
const SCRIPTS: [(u32, u64); 20] = [
    (0x00C0, 0x100),
    (0x0370, 0x80),
    (0x0400, 0x100),
    (0x05D0, 27),
    (0x0620, 0x50),
    (0x0904, 0x60),
    (0x0E01, 0x50),
    (0x10A0, 0x60),
    (0x3041, 0xB0),
    (0x4E00, 0x5000),
    (0xAC00, 0x2BA4),
    (0x1F300, 0x300),
    (0x0300, 0x70),
    (0x2150, 0x40),
    (0x0660, 10),
    (0x1D400, 0x100),
    (0x20000, 0x1000),
    (0xE000, 0x80),
    (0x10D40, 0x50),
    (0xA720, 0xC0),
];

struct Stream(u64);

impl Stream {
    fn below(&mut self, count: u64) -> u64 {
        splitmix::next(&mut self.0) % count
    }

    fn code(&mut self, count: u64) -> u32 {
        u32::try_from(self.below(count)).unwrap()
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn letters(&mut self, count: u64) -> String {
        let letters = (0..count).map(|_| {
            let letter = u32::from('a') + self.code(26);
            scalar(letter - 32 * u32::from(self.below(8) == 0))
        });
        letters.collect()
    }

    /// A character of any plane, whether it is assigned or not; none is half of a pair.
    fn anything(&mut self) -> char {
        let code = self.code(0x11_0000 - 0x800);
        scalar(if code >= 0xD800 { code + 0x800 } else { code })
    }

    fn piece(&mut self) -> String {
        match self.below(12) {
            0 => {
                let count = 1 + self.below(3);
                (0..count).map(|_| self.anything()).collect()
            }
            1 => self.one_of(&KNOTS).into(),
            2 => {
                let space = self.one_of(&SPACES);
                space.repeat(1 + self.below(4) as usize)
            }
            3 => {
                let count = 1 + self.below(9);
                format!(" {}", self.letters(count))
            }
            4 => {
                let count = 1 + self.below(9);
                self.letters(count)
            }
            5 => {
                let count = 1 + self.below(8);
                (0..count)
                    .map(|_| scalar(u32::from('0') + self.code(10)))
                    .collect()
            }
            6 => self.one_of(&CLIPPED).into(),
            7 => {
                let code = self.code(65);
                scalar(if code < 32 { code } else { code + 95 }).into()
            }
            8 | 9 => {
                let (first, span) = self.one_of(&SCRIPTS);
                let count = 1 + self.below(5);
                (0..count)
                    .map(|_| scalar(first + self.code(span)))
                    .collect()
            }
            10 => self.one_of(&MARKS).into(),
            _ => self.one_of(&SIGNS).into(),
        }
    }
}

fn scalar(code: u32) -> char {
    char::from_u32(code).unwrap()
}

/// The text of this number.
pub(crate) fn text(number: u64) -> String {
    let mut stream = Stream(number);
    match stream.below(64) {
        0 => {
            let count = 100 + stream.below(1900);
            stream.letters(count)
        }
        1 => {
            let space = stream.one_of(&SPACES);
            space.repeat(1 + stream.below(200) as usize)
        }
        _ => {
            let count = stream.below(9);
            (0..count).map(|_| stream.piece()).collect()
        }
    }
}

/// FNV-1a, word by word: each list's length and then its numbers.
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, numbers: &[i64]) {
        let length = numbers.len() as u64;
        let numbers = numbers.iter().map(|number| number.cast_unsigned());
        for word in std::iter::once(length).chain(numbers) {
            self.0 = (self.0 ^ word).wrapping_mul(0x100_0000_01b3);
        }
    }

    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}
