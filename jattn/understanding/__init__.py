"""Tools that open a model, one a file: pure functions of (model, params, inputs) that know no model class.

A model is anything whose config has `layer_sites()`: the decoder, scanned or not, with any mixers.
"""
