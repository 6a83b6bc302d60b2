//! One model, many personas, any engine: the facade library and the consort command.
