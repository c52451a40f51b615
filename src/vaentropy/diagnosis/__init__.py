"""Diagnosis of any VAE: what was found, how sure that is, and what to do."""

from vaentropy.diagnosis.diagnose import diagnose as diagnose
from vaentropy.diagnosis.gradients import GradientCheck as GradientCheck
from vaentropy.diagnosis.gradients import gradient_check as gradient_check
from vaentropy.diagnosis.implied import implied_variance as implied_variance
from vaentropy.diagnosis.latents import Latents as Latents
from vaentropy.diagnosis.latents import latents_of as latents_of
from vaentropy.diagnosis.report import Diagnosis as Diagnosis
from vaentropy.diagnosis.report import Finding as Finding
