"""augmint: augmented image samples by class label."""
