"""vaentropy inside other libraries: a scikit-learn estimator, a Lightning callback."""
