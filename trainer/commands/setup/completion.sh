# Completes the command entracte in bash and zsh; written by `entracte completion`.

if [ -n "${ZSH_VERSION-}" ]; then
    autoload -Uz compinit bashcompinit
    whence compdef >/dev/null || compinit
    bashcompinit
fi

_entracte_options() {
    case "$1" in
@OPTIONS@
    esac
}

# What may follow: the command and its last option, empty if there is none.
_entracte_values() {
    case "$1 $2" in
@VALUES@
    esac
}

# The directories of a store that runs were recorded in.
_entracte_runs() {
    local folder=${_entracte_store:-${@VARIABLE@:-@DEFAULT@}}
    [ -d "$folder" ] || return 0
    (cd "$folder" && find -L . -mindepth 2 -maxdepth 2 -name @QUEUE@ 2>/dev/null) |
        sed -e 's,^\./,,' -e 's,/[^/]*$,,' | grep -v '[^[:alnum:]._+-]' | sort
}

_entracte() {
    local current=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} option= place word words
    local _entracte_store=
    [ "$current" = "=" ] && current=
    for ((place = 2; place < COMP_CWORD; place++)); do
        word=${COMP_WORDS[place]}
        case "$word" in
            =) ;;
            -*) option=$word ;;
            *)
                [ "$option" = --store ] && _entracte_store=$word
                case "$command $option" in
@SINGLE@) option= ;; # its one value is given
                esac
                ;;
        esac
    done
    if [ "$COMP_CWORD" -eq 1 ]; then
        words='@COMMANDS@'
    else
        case "$current" in
            -*) words=$(_entracte_options "$command") ;;
            *) words=$(_entracte_values "$command" "$option") ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}

complete -o default -F _entracte entracte
