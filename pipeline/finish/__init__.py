"""From the raw result to what is shown: frames that agree, known pixels put back, grain."""
