"""The network: backbones, encoders, query sources, decoder, prediction heads."""
