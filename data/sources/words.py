"""What a word is, for baselines and comparisons that split texts without a tokenizer."""

# Scripts without blanks between words: Thai, Lao, Burmese, Khmer, Chinese, Japanese. Korean has blanks.
_UNSPACED = (
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    r"\u3005\u3040-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
WORD = rf"{_UNSPACED}|(?:(?!{_UNSPACED})\w)+"  # a character of such a script is a word
