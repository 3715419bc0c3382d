"""What must be computed: layers to FLOPs, bytes, parameters and activations."""
