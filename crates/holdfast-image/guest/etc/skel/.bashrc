# Interactive shells only.
case $- in *i*) ;; *) return ;; esac

HISTCONTROL=ignoreboth
HISTSIZE=5000
HISTFILESIZE=10000
shopt -s histappend checkwinsize globstar 2>/dev/null

export EDITOR=nano PAGER=less LESS=-FRX
alias ls='ls --color=auto' ll='ls -lh' la='ls -lah' grep='grep --color=auto'

# Where, then a sign that turns red after a failure.
__holdfast_prompt() {
    local sign='\[\e[38;5;114m\]'
    [ "$1" -eq 0 ] || sign='\[\e[38;5;203m\]'
    PS1="\[\e]0;\w\a\]\[\e[1;38;5;75m\]\w\[\e[0m\] ${sign}❯\[\e[0m\] "
}
PROMPT_COMMAND='__holdfast_prompt $?'
