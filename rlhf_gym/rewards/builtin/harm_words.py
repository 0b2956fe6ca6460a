"""The words of :mod:`rlhf_gym.rewards.builtin.harm`. Rude ones are among them; slurs are not."""

from __future__ import annotations


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Only words that hardly occur otherwise: films have rats, thugs and maniacs in them.
INSULTS = _listed(
    """
    airhead asshole bastard bimbo bitch blockhead bonehead buffoon bum clown coward creep cretin dimwit
    dipshit dolt dope dork douchebag dumbass dummy dunce dweeb fathead fool freak fraud fucker halfwit hack
    idiot ignoramus imbecile jackass jerk klutz knucklehead lamebrain loser lowlife maggot moron motherfucker
    nincompoop ninny nitwit numbskull nutcase oaf parasite pinhead retard scum scumbag shithead simpleton slob
    slut swine trash twerp twit vermin weirdo whore wretch
    """
)

MEAN = _listed(
    """
    braindead brainless cowardly crazy daft dense despicable disgusting dull-witted dumb empty-headed fat
    filthy greedy hopeless idiotic ignorant incompetent inept insane insufferable lazy moronic nasty obnoxious
    pathetic repulsive rotten shameless sleazy stupid talentless ugly untalented useless vile witless
    worthless
    """
)

CURSES = _listed(
    """
    ass asshole bastard bitch bloody bollocks bullshit crap damn damned dick fuck fucked fucking goddamn hell
    piss pissed shit shitty
    """
)

PEOPLE = _listed(
    """
    you he she they i we him her them someone anyone everyone everybody nobody who whoever people person man
    woman guy boy girl director writer producer actor actress lead star cast editor composer critic audience
    crew performer author kid directors writers producers actors critics men women guys fans viewers kids
    you're he's she's they're who's your his their
    """
)

NEGATIONS = _listed("not no never isn't aren't wasn't ain't hardly neither without")
