"""How far networks are from the ensemble of the models, judged on inputs that were held out."""
