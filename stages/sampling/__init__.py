"""How answers are made: sampler, decoding, merged model, vLLM."""
